"""The main branch's own DALI pipelines, run on the CPU before and after mending."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ressl_plugin import host

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")
pytestmark = pytest.mark.skipif(
    host.GENERATION != "main", reason="the host is 1.0.2; set SOLO_LEARN to a checkout of main"
)

RUN = '''
import os, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from ressl_plugin import host
from ressl_plugin.utils.errors import UserError
from ressl_plugin.host import dali

root = Path(sys.argv[1])


def loader(batch_size=4, rank=0, ranks=1, device="cpu"):
    import solo.data.dali_dataloader as D
    from omegaconf import OmegaConf
    from solo.data.pretrain_dataloader import FullTransformPipeline, NCropAugmentation

    off = {"prob": 0.0}
    view = OmegaConf.create({
        "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
        "color_jitter": {**off, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
        "grayscale": off, "gaussian_blur": off, "solarization": off, "equalization": off,
        "horizontal_flip": {"prob": 0.5}, "crop_size": 16})
    view = D.build_transform_pipeline_dali("custom", view, device)
    views = FullTransformPipeline([NCropAugmentation(view, 2)])
    module = D.PretrainDALIDataModule("custom", root, views, 2, 0, batch_size, num_workers=1,
                                      dali_device=device, encode_indexes_into_labels=True)
    module.trainer = SimpleNamespace(local_rank=0, global_rank=rank, world_size=ranks)
    module.setup()
    return module.train_dataloader()


def epochs(count, ranks=1):
    """Images (as their indexes) of each epoch, over all ranks, and the first epoch's pixels."""
    loaders, out, pixels = [loader(rank=r, ranks=ranks) for r in range(ranks)], [], []
    for _ in range(count):
        batches = [batch for one in loaders for batch in one]
        out.append([i for indexes, _, _ in batches for i in indexes.tolist()])
        pixels.append(sum(view.double().sum().item() for _, views, _ in batches for view in views))
    return out, pixels[0]


def without_device_id():
    """Only what lets the host's pipelines run here at all; the rest is as shipped."""
    from solo.data.dali_dataloader import PretrainPipelineBuilder as cls
    shipped = cls.pipeline
    def on_cpu(self, *args, **kwargs):
        return shipped(self, *args, **{**kwargs, "device_id": None})
    cls.pipeline = on_cpu
    return lambda: setattr(cls, "pipeline", shipped)


host.GENERATION  # imports and mends the host
'''

BEFORE = """
if not torch.cuda.is_available():
    try:
        loader()
        raise SystemExit("runs unmended")
    except RuntimeError as error:
        assert "device_id" in str(error), error
restore = without_device_id()
seen, pixels = epochs(6)
assert any(len(set(epoch)) < 12 for epoch in seen), seen
os.environ["PL_GLOBAL_SEED"] = "5"
assert epochs(6) == (seen, pixels)
restore()
"""

AFTER = """
dali.mend()
dali.mend()
if not torch.cuda.is_available():
    try:
        loader(device="gpu")
        raise SystemExit("gpu runs without a gpu")
    except UserError as error:
        assert "set dali.device=cpu" in str(error), error
results = {}
for seed in (5, 6, 5):
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    seen, pixels = epochs(3)
    assert all(len(epoch) == len(set(epoch)) == 12 for epoch in seen), seen
    assert set(sum(seen, [])) == set(range(15))
    assert results.setdefault(seed, (seen, pixels)) == (seen, pixels)
assert results[5][0] != results[6][0]
for epoch in epochs(4, ranks=3)[0]:
    assert len(epoch) == len(set(epoch)) == 12, epoch
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """15 images, which batches of 4 do not divide."""
    root = tmp_path_factory.mktemp("host") / "train"
    for i in range(15):
        place = root / f"class{i // 5}"
        place.mkdir(parents=True, exist_ok=True)
        levels = np.random.default_rng(i).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(levels).save(place / f"{i:02d}.jpg")
    return root


def test_as_shipped_and_mended(folder):
    """As shipped: no pipeline without a GPU; epochs repeat and miss images; the config's seed
    changes nothing. Mended: all of it holds, on one rank and on three."""
    env = {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN + BEFORE + AFTER, str(folder)],
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
