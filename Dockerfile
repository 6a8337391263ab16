# docker build -t ressl . && docker run --gpus all --shm-size 8g -v "$PWD:/work" ressl data digits datasets/digits
# The whole image, not -slim: torch.compile and Triton need its C compiler.
FROM python:3.12
COPY pyproject.toml setup.cfg README.md LICENSE /src/
COPY hydra_plugins /src/hydra_plugins
COPY scripts /src/scripts
COPY ressl_plugin /src/ressl_plugin
RUN pip install --no-cache-dir "/src[figures,dali]" \
    && pip install --no-cache-dir --no-deps solo-learn==1.0.2
WORKDIR /work
ENTRYPOINT ["ressl"]
