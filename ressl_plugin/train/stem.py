"""backbone.stem=auto: the stem by the size of the crops, written down before a run starts.

In a stored config `auto` is version 0.1.0's, the host's choice by the data set's name; a run made
now says which stem it has.
"""

from __future__ import annotations

import logging

import torch
from omegaconf import DictConfig, OmegaConf

from ressl_plugin.method import backbone
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)

SMALL = 64  # pixels a side: up to the paper's medium data
DONE = {
    "paper": "3x3, stride 1, padding 1, no max pool",
    "solo": "solo-learn's for CIFAR, 3x3, padding 2, no max pool",
    "imagenet": "7x7, stride 2, max pool",
}


def settle(cfg: DictConfig, stored: DictConfig | None = None) -> DictConfig:
    """`cfg`, in place, with a stem by name where it says auto and the network is a ResNet.

    Args:
        stored: the config of the run that goes on, which keeps what it has.
    """
    kept = stored is not None and OmegaConf.select(stored, "backbone.stem") in (None, "auto")
    if cfg.backbone.stem != "auto" or kept:
        return cfg
    size = max(crop.crop_size for crop in recipe.read(cfg.augmentations).crops)
    stem = choose(cfg, size)
    if stem == "auto":
        return cfg
    log.info("backbone.stem=auto: %s (%s), for crops of %d pixels", stem, DONE[stem], size)
    cfg.backbone.stem = stem
    return cfg


def choose(cfg: DictConfig, size: int) -> str:
    """The stem for crops of `size` pixels a side; auto where there is none to choose."""
    if "res" not in cfg.backbone.name:
        return "auto"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # its layers, not its weights
        network = backbone.build(cfg)
    if not backbone.has_stem(network):
        return "auto"
    if network.conv1.kernel_size == (3, 3):  # the host has changed it: the data set is CIFAR
        return "solo"
    return "paper" if size <= SMALL else "imagenet"
