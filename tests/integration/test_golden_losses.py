"""The losses of the first 50 steps of three recipes, made tiny, are those that they have been.

Bit for bit where versions and processor are those of golden_losses.json, else to 1e-4. Whoever
changes them says why in CHANGELOG.md, and renews the file:

    python -m pytest tests/integration/test_golden_losses.py --renew-golden
"""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import lightning.pytorch as pl
import pytest
from ranks import on_ranks

from ressl_plugin import config, data
from ressl_plugin.train.pretrain import pretrain

FILE = Path(__file__).with_name("golden_losses.json")
STEPS = 50
# Small rates, and no operation that rounds to 8 bits: on another processor a last bit would become
# another level of a pixel, and a tenth of the loss some steps later.
TINY = [
    "data.dataset=custom", "data.val_path=null", "data.backend=batched", "devices=1",
    "accelerator=cpu", "precision=32-true", "backbone.name=timm:resnet10t", "backbone.stem=auto",
    "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.proj_hidden_dim=64",
    "method_kwargs.proj_output_dim=32", "method_kwargs.queue_size=256", "optimizer.batch_size=16",
    "optimizer.lr=1e-4", "optimizer.classifier_lr=1e-3", "scheduler.warmup_epochs=0.2",
    "max_epochs=2", f"limit_train_batches={STEPS // 2}", "knn_eval.enabled=false",
    "enable_progress_bar=false", "enable_model_summary=false",
]  # fmt: skip


def views(sizes):
    """The recipe's, as small as this; the second is the teacher's, which has no colours."""
    of_students = [i for i in range(len(sizes)) if i != 1]
    return [
        *(f"augmentations.{i}.crop_size={size}" for i, size in enumerate(sizes)),
        *(f"augmentations.{i}.gaussian_blur.prob=0" for i in of_students),
        *(f"augmentations.{i}.color_jitter.hue=0" for i in of_students),
    ]


RECIPES = {
    "cifar/ressl": ["batchnorm.groups=2", *views([16, 16])],
    "imagenet/ressl_multicrop4": views([24, 24, 20, 16, 12]),
    "digits/ressl_v2": [
        "method_kwargs.pred_hidden_dim=64", "method_kwargs.infonce_epochs=1", "optimizer.lr=1e-5",
        *views([16, 16]),
    ],
}  # fmt: skip


class Losses(pl.Callback):
    """The loss of every step, a float32 as it is."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.found.append(outputs["loss"].item())


def losses(recipe, images, folder):
    own = [f"run_dir={folder}/run", f"data.train_path={images}/train"]
    watch = Losses()
    pretrain(config.finish(config.load(recipe, [*TINY, *own, *RECIPES[recipe]])), [watch])
    return watch.found


def made_by():
    """What decides the last bit: libraries, and of the processor what its kernels are chosen by."""
    libraries = ("torch", "torchvision", "numpy", "timm", "pillow", "scikit-learn")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    said = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    processor = {key: said.get(key, "") for key in ("vendor_id", "cpu family", "model")}
    vectors = [f for f in said.get("flags", "").split() if f.startswith(("avx", "fma", "amx"))]
    return {
        "versions": {name: version(name) for name in libraries},
        "processor": {**processor, "machine": platform.machine(), "flags": sorted(vectors)},
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return data.make_digits(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_are_as_they_were(recipe, images, tmp_path, request):
    (found,) = on_ranks(1, losses, tmp_path / "ranks", recipe, images, tmp_path)
    assert len(set(found)) == STEPS, found
    golden = json.loads(FILE.read_text())
    if request.config.getoption("--renew-golden"):
        if golden["made_by"] != made_by():  # the other recipes' are of another machine
            golden = {"made_by": made_by(), "losses": {}}
        golden["losses"][recipe] = found
        FILE.write_text(json.dumps(golden, indent=1) + "\n")
    expected = golden["losses"][recipe]
    if golden["made_by"] == made_by():
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=0, abs=1e-4)


def test_every_recipe_has_golden_losses_and_no_two_begin_alike():
    found = json.loads(FILE.read_text())["losses"]
    assert found.keys() == RECIPES.keys()
    first = {values[0] for values in found.values()}
    assert len(first) == len(RECIPES)
