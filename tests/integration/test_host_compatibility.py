"""What the host's own test of its ReSSL asks for, asked of the class in METHODS["ressl"].

Written anew, with smaller images. The host's file itself is run against the plugin's class by

    SOLO_LEARN=. python -c 'import sys, pytest, ressl_plugin; ressl_plugin.register();
    import solo.methods as host; host.ReSSL = host.METHODS["ressl"];
    sys.exit(pytest.main(["tests/methods/test_ressl.py"]))'

from a checkout of the host's main branch.
"""

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, Dataset

from ressl_plugin import host
from ressl_plugin.method import registry
from ressl_plugin.method.ressl import ReSSL

BATCH, CLASSES = 2, 100


def host_config(dataset="custom", classes=CLASSES):
    """The least that the host's main branch gives to a momentum method; no augmentations."""
    return OmegaConf.create(
        {
            "name": "test",
            "method": "ressl",
            "backbone": {"name": "resnet18"},
            "method_kwargs": {
                "proj_output_dim": 256,
                "proj_hidden_dim": 2048,
                "temperature_q": 0.1,
                "temperature_k": 0.04,
                "queue_size": 65536,
                "momentum_classifier": True,  # dead in the host too: momentum.classifier counts
            },
            "momentum": {"base_tau": 0.99, "final_tau": 1.0},
            "data": {
                "dataset": dataset, "train_path": ".", "val_path": ".", "format": "image_folder",
                "num_workers": 4, "num_large_crops": 2, "num_small_crops": 0,
                "num_classes": classes,
            },
            "optimizer": {
                "name": "lars", "batch_size": BATCH, "lr": 0.3, "classifier_lr": 0.1,
                "weight_decay": 1e-5, "kwargs": {"momentum": 0.9},
            },
            "scheduler": {"name": "warmup_cosine"},
            "checkpoint": {"enabled": False},
            "auto_resume": {"enabled": False},
            "max_epochs": 5,
            "devices": 1,
            "accelerator": "cpu",
            "num_nodes": 1,
        }
    )  # fmt: skip


class Images(Dataset):
    """Views as the host's loaders give them, (index, [views], target); or (image, target)."""

    def __init__(self, size, classes, views):
        self.size, self.classes, self.views = size, classes, views

    def __len__(self):
        return 8

    def __getitem__(self, index):
        images = [torch.randn(3, self.size, self.size) for _ in range(max(1, self.views))]
        target = index % self.classes
        return (index, images, target) if self.views else (images[0], target)


def fit(model, size, classes):
    trainer = pl.Trainer(
        fast_dev_run=True, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_epochs=5,
    )  # fmt: skip
    train, val = (DataLoader(Images(size, classes, views), BATCH) for views in (2, 0))
    trainer.fit(model, train, val)
    return trainer


@pytest.fixture(scope="module")
def method():
    registry.register()
    return host.METHODS["ressl"]


@pytest.fixture(scope="module")
def model(method):
    torch.manual_seed(0)
    return method(host_config())


def test_it_is_the_plugins_class(method):
    assert method is ReSSL
    assert issubclass(host.METHODS["ressl_host"], torch.nn.Module)
    assert host.METHODS["ressl_host"] is not ReSSL


def test_arguments_may_be_checked_again(model):
    cfg = host_config()
    filled = model.add_and_assert_specific_cfg(cfg)
    assert filled.method_kwargs.queue_size == 65536
    again = model.add_and_assert_specific_cfg(filled)
    assert again == filled


def test_parameters(model):
    names = [group["name"] for group in model.learnable_params]
    assert {"backbone", "classifier", "projector"} <= set(names)
    assert len(model.momentum_pairs) == 2


@pytest.mark.parametrize("size", [64, 32])
def test_forward(model, size):
    images = torch.randn(BATCH, 3, size, size)
    out = model(images)
    assert out["logits"].shape == (BATCH, CLASSES)
    assert out["feats"].shape == (BATCH, model.features_dim)
    assert out["z"].shape == (BATCH, 256)
    assert out["z"].requires_grad
    momentum = model.momentum_forward(images)
    assert momentum["feats"].shape == (BATCH, model.features_dim)
    assert momentum["z"].shape == (BATCH, 256)
    assert not momentum["z"].requires_grad


def test_one_step_on_images_as_imagenets(model):
    before = model.queue.clone()
    trainer = fit(model, 64, CLASSES)
    assert trainer.global_step == 1
    moved = (model.queue != before).any(1).nonzero().flatten().tolist()
    assert moved == [0, 1]  # a queue of 65536 and a batch of 2
    assert int(model.queue_ptr) == BATCH


def test_one_step_on_images_as_cifars(method):
    model = method(host_config("cifar10", 10))
    assert model.backbone.conv1.kernel_size == (3, 3)  # the host's own stem for CIFAR
    trainer = fit(model, 32, 10)
    assert trainer.global_step == 1
    assert {"val_loss", "val_acc1"} <= set(trainer.callback_metrics)
