"""A small folder of images and a config, for all the data tests."""

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image


@pytest.fixture
def make_folder(tmp_path):
    """make(name="train", classes=("a", "b"), count=3, size=(8, 8)) -> root of random PNG files."""

    def make(name="train", classes=("a", "b"), count=3, size=(8, 8)):
        rng = np.random.default_rng(0)
        for label in classes:
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path / name

    return make


@pytest.fixture
def config():
    """make(dataset, train_path, val_path=None, crop=8, **data) -> config in main's schema."""

    def make(dataset, train_path, val_path=None, crop=8, **data):
        paths = {"train_path": str(train_path), "val_path": val_path and str(val_path)}
        return OmegaConf.create(
            {
                "data": {"dataset": dataset, **paths, "num_workers": 0, **data},
                "optimizer": {"batch_size": 4},
                "augmentations": [{"crop_size": crop}, {"crop_size": crop // 2}],
            }
        )

    return make
