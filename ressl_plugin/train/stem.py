"""backbone.stem=auto: the stem by the size of the crops, written down before a run starts.

In a stored config `auto` is version 0.1.0's, the host's choice by the data set's name; a run made
now says which stem it has.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from ressl_plugin import run
from ressl_plugin.config import yaml_files
from ressl_plugin.method import backbone
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)

SMALL = 64  # pixels a side: up to the paper's medium data
DONE = {
    "paper": "3x3, stride 1, padding 1, no max pool",
    "solo": "solo-learn's for CIFAR, 3x3, padding 2, no max pool",
    "imagenet": "7x7, stride 2, max pool",
}


def settle(cfg: DictConfig) -> DictConfig:
    """`cfg`, in place, with a stem by name where it says auto and the network is a ResNet.

    A run that goes on keeps what it has.
    """
    if cfg.backbone.stem != "auto" or _stored(cfg) == "auto":
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


def _stored(cfg: DictConfig) -> str | None:
    """What the run that goes on has in its config; None where a run begins."""
    resume = cfg.resume_from_checkpoint or cfg.resume
    folder = run.directory(cfg) if resume is True else Path(resume or "")
    if not resume or not (folder.is_file() or run.has_checkpoint(folder)):
        return None
    file = (folder if folder.is_dir() else folder.parent) / "config.yaml"
    stored = yaml_files.read(file) if file.is_file() else {}  # the host's runs have none
    return OmegaConf.select(OmegaConf.create(stored), "backbone.stem") or "auto"
