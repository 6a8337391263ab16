"""Tiny configs, random images and a short Trainer for the tests of the host layer."""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from ressl_plugin import host

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


class Tiny(torch.nn.Module):
    """A backbone for what does not depend on one: (N, 3, H, W) -> (N, 6)."""

    num_features = 6

    def __init__(self, method, width=2):
        super().__init__()
        self.method = method
        self.conv = torch.nn.Conv2d(3, 3 * width, 3, stride=2)
        self.norm = torch.nn.BatchNorm2d(3 * width)

    def forward(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3))


@pytest.fixture(autouse=True)
def the_hosts_own_registry():
    """As it is before the plugin registers, whatever a test before has done in this process."""
    ours = host.METHODS["ressl"]
    theirs = host.METHODS.pop("ressl_host", None)
    if theirs is not None:
        host.METHODS["ressl"] = theirs
    yield
    if theirs is not None:
        host.METHODS["ressl"], host.METHODS["ressl_host"] = ours, theirs


@pytest.fixture
def tiny():
    """The name under which `Tiny` is registered, as a `backbone` section."""
    host.BACKBONES["tiny_of_the_tests"] = Tiny
    return {"name": "tiny_of_the_tests", "kwargs": {"width": 2}}


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


def fit(model, epochs=1, views=2, val=True, ckpt_path=None, **trainer):
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
    held_out = DataLoader(RandomImages(), batch_size=8) if val else None
    runner.fit(model, train, held_out, ckpt_path=ckpt_path)
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


@pytest.fixture
def toy():
    """The least that derives from the base: it overrides forward, as the plugin's method does."""

    class Toy(host.MomentumBase):
        def forward(self, X):
            return {**super().forward(X), "z": X.mean((1, 2, 3))}

        def training_step(self, batch, batch_idx):
            out = super().training_step(batch, batch_idx)
            self.rates = [group["lr"] for group in self.optimizers().param_groups]
            self.seen = [*getattr(self, "seen", []), self.rates]
            assert len(out["z"]) == len(out["feats"]) == 2
            assert len(out["momentum_feats"]) == 2
            return out["loss"] + sum(f.square().mean() for f in out["feats"])

    return Toy
