"""Tiny configs, random images and a short Trainer for the tests of the host layer."""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

# What keeps each method small; what is not here is the default that the host layer fills in.
SMALL = {
    "all4one": {"queue_size": 32, "pred_hidden_dim": 32, "proj_output_dim": 16},
    "deepclusterv2": {"num_prototypes": [4, 4], "kmeans_iters": 2},
    "dino": {"num_prototypes": 32, "warmup_teacher_temperature_epochs": 0, "clip_grad": 0.1},
    "mae": {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2},
    "mocov2plus": {"queue_size": 32},
    "nnbyol": {"queue_size": 32},
    "nnclr": {"queue_size": 32},
    "nnsiam": {"queue_size": 32},
    "ressl": {"queue_size": 32},
    "swav": {"num_prototypes": 32, "queue_size": 32},
    "wmse": {"whitening_size": 8, "proj_output_dim": 4},
}
NARROW = {"proj_hidden_dim": 32, "proj_output_dim": 16, "pred_hidden_dim": 16}


class RandomViews(Dataset):
    """(index, views, target) of noise: 16 images, two views of 32 x 32, three classes."""

    def __init__(self, views=2, size=32):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(16, views, 3, size, size, generator=generator)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return index, list(self.images[index]), index % 3


class RandomImages(RandomViews):
    """(image, target) of the same noise, the last batch a short one."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.images[index][0], index % 3


def make_config(method, **overrides):
    """A config of the fewest keys, narrow heads; `overrides` in dotted names with __ for dots."""
    kwargs = {**NARROW, **SMALL.get(method, {})}
    cfg = OmegaConf.create(
        {
            "method": method,
            "backbone": {"name": "resnet18"},
            "data": {"dataset": "custom", "num_classes": 3},
            "optimizer": {"name": "sgd", "lr": 0.01, "classifier_lr": 0.05, "batch_size": 8},
            "scheduler": {"name": "warmup_cosine", "warmup_epochs": 0},
            "max_epochs": 1,
            "method_kwargs": kwargs,
        }
    )
    if method == "mae":
        cfg.backbone = {"name": "vit_tiny", "kwargs": {"img_size": 32, "patch_size": 16}}
    for key, value in overrides.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def fit(model, epochs=1, views=2, val=True, **trainer):
    """Two steps an epoch on random views, then validation; returns the Trainer."""
    options = {
        "max_epochs": epochs,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 1,
        **trainer,
    }
    train = DataLoader(RandomViews(views), batch_size=8, shuffle=True, drop_last=True)
    runner = pl.Trainer(**options)
    runner.fit(model, train, DataLoader(RandomImages(), batch_size=8) if val else None)
    return runner


@pytest.fixture
def config():
    return make_config


@pytest.fixture
def trained():
    return fit


@pytest.fixture
def images():
    """Loaders for LinearModel: (image, target)."""
    return DataLoader(RandomImages(), batch_size=8), DataLoader(RandomImages(), batch_size=8)
