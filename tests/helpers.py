"""Configs and data that several tests share: small, seeded, made on the spot."""

from __future__ import annotations

import copy
import hashlib
import pickle

import lightning.pytorch as pl
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets

VIEW = {
    "crop_size": 16,
    "num_crops": 1,
    "rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0},
    "color_jitter": {"prob": 0.0, "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0},
    "grayscale": {"prob": 0.0},
    "gaussian_blur": {"prob": 0.0},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.5},
}


class Interrupted(Exception):
    """As good as a kill: the checkpoint is the one of the step before."""


class Stop(pl.Callback):
    """Interrupt a training after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Interrupted


def make_config(**changes):
    """A ReSSL config as the host's class takes it; `changes` are dotted keys with __ for dots."""
    cfg = OmegaConf.create(
        {
            "name": "test",
            "method": "ressl",
            "seed": 1,
            "backbone": {"name": "resnet18", "kwargs": {}, "stem": "paper"},
            "method_kwargs": {
                "proj_hidden_dim": 32,
                "proj_output_dim": 16,
                "temperature_q": 0.1,
                "temperature_k": 0.04,
                "queue_size": 40,
            },
            "batchnorm": {"groups": 0, "mode": "group"},
            "momentum": {"base_tau": 0.9, "final_tau": 0.9, "classifier": False},
            "data": {
                "dataset": "custom",
                "train_path": None,
                "val_path": None,
                "num_classes": 10,
                "num_large_crops": 2,
                "num_small_crops": 0,
                "num_workers": 0,
                "backend": "batched",
            },
            "augmentations": [
                {**copy.deepcopy(VIEW), "role": "student"},
                {**copy.deepcopy(VIEW), "role": "teacher"},
            ],
            "optimizer": {
                "name": "sgd",
                "batch_size": 8,
                "lr": 0.06,
                "classifier_lr": 0.1,
                "weight_decay": 5e-4,
                "kwargs": {"momentum": 0.9},
            },
            "scheduler": {
                "name": "warmup_cosine",
                "warmup_epochs": 1,
                "warmup_start_lr": 0.0,
                "min_lr": 0.0,
                "interval": "step",
            },
            "knn_eval": {"enabled": False, "k": 20, "distance_func": "cosine"},
            "performance": {"disable_channel_last": True, "capture": False},
            "accumulate_grad_batches": 1,
            "max_epochs": 2,
            "devices": 1,
            "accelerator": "cpu",
            "precision": "32-true",
            "strategy": "auto",
        }
    )
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def random_batches(steps: int, n: int, views: int = 2, size: int = 16, classes: int = 10, seed=0):
    """`steps` batches [indexes, [views of (n, 3, size, size)], targets]."""
    g = torch.Generator().manual_seed(seed)
    return [
        [
            torch.arange(n) + i * n,
            [torch.randn(n, 3, size, size, generator=g) for _ in range(views)],
            torch.randint(classes, (n,), generator=g),
        ]
        for i in range(steps)
    ]


def ungrouped(module):
    """`to_groups` undone, in place."""
    for layer in module.modules():
        if hasattr(layer, "groups") and isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.__class__ = type(layer).__bases__[1]
            del layer.groups
    return module


def fake_cifar(root, monkeypatch, train, test, classes=10):
    """CIFAR-10's own format with so many images; torchvision is told their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(count):
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [i % classes for i in range(count)]}

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [write("data_batch_1", batch(train))])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [write("test_batch", batch(test))])
    name, md5 = write("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root


def image_folder(root, classes=3, per_class=8, size=16, seed=0, splits=("train", "val")):
    """A folder of PNG files whose classes differ in colour; returns root."""
    g = np.random.default_rng(seed)
    for split in splits:
        for c in range(classes):
            folder = root / split / f"class{c}"
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                pixels = g.integers(0, 100, (size, size, 3), dtype=np.uint8)
                pixels[..., c % 3] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


TREE = {"cat": (200, 40, 40), "dog": (40, 40, 200), "car": (40, 200, 40)}


def make_voc(root, per_class=6):
    """VOC2007 with one plain colour a class; every fifth image also has a difficult car."""
    base = root / "VOCdevkit" / "VOC2007"
    for folder in ("ImageSets/Main", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    number = 0
    for split in ("trainval", "test"):
        rows = []
        for i in range(per_class * len(TREE)):
            number += 1
            name, label = f"{number:06d}", list(TREE)[i % len(TREE)]
            shade = np.array(TREE[label]) + number % 7
            Image.new("RGB", (20, 14), tuple(shade.tolist())).save(
                base / "JPEGImages" / f"{name}.jpg"
            )
            things = [(label, 0)] + ([("car", 1)] if i % 5 == 0 else [])
            rows.append((name, things))
        main = base / "ImageSets" / "Main"
        (main / f"{split}.txt").write_text("".join(f"{name}\n" for name, _ in rows))
        for c in TREE:
            codes = []
            for name, things in rows:
                easy = (c, 0) in things
                codes.append(f"{name} {1 if easy else 0 if (c, 1) in things else -1:2d}\n")
            (main / f"{c}_{split}.txt").write_text("".join(codes))
    return root / "VOCdevkit"
