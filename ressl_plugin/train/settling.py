"""What this machine and the views make of `auto`, said and written down before a run begins.

In a stored config `backbone.stem=auto` is version 0.1.0's, the host's choice by the data set's
name; a run made now says which stem it has.
"""

from __future__ import annotations

import logging

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ressl_plugin.method import backbone
from ressl_plugin.utils import precision
from ressl_plugin.utils.devices import runnable
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)

SMALL = 64  # pixels a side: up to the paper's medium data
STEMS = {
    "paper": "3x3, stride 1, padding 1, no max pool",
    "solo": "solo-learn's for CIFAR, 3x3, padding 2, no max pool",
    "imagenet": "7x7, stride 2, max pool",
}


def settled(cfg: DictConfig, stored: DictConfig | None = None) -> DictConfig:
    """A copy of the config with devices, stem and precision by name.

    Args:
        cfg: a complete config.
        stored: the config of the run that goes on, which keeps what it has; empty for a run of the
            host, None where a run begins.
    """
    return _settle_precision(settle_stem(runnable(cfg), stored), stored)


def settle_stem(cfg: DictConfig, stored: DictConfig | None = None) -> DictConfig:
    """`cfg`, in place, with a stem by name where it says auto and the network is a ResNet."""
    kept = stored is not None and OmegaConf.select(stored, "backbone.stem") in (None, "auto")
    if cfg.backbone.stem != "auto" or kept:
        return cfg
    size = max(crop.crop_size for crop in recipe.read(cfg.augmentations).crops)
    stem = _stem(cfg, size)
    if stem != "auto":
        log.info("backbone.stem=auto: %s (%s), for crops of %d pixels", stem, STEMS[stem], size)
    cfg.backbone.stem = stem
    return cfg


def _stem(cfg: DictConfig, size: int) -> str:
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


def _settle_precision(cfg: DictConfig, stored: DictConfig | None) -> DictConfig:
    """`cfg`, in place, with a precision by name where it says auto."""
    gpu = cfg.accelerator != "cpu"
    found, device = precision.fastest(gpu), "GPU" if gpu else "processor"
    goes_on = cfg.precision == "auto" and stored is not None and "precision" in stored
    if goes_on:
        cfg.precision = stored.precision
        log.info("precision=auto: %s, as the run began", cfg.precision)
    if goes_on or cfg.precision != "auto":
        if str(cfg.precision).startswith("bf16") and found == "32-true":
            log.warning(
                "precision=%s: the %s only emulates bfloat16, which can take fifty times as long "
                "as precision=32-true", cfg.precision, device,
            )  # fmt: skip
        return cfg
    does = "does not multiply" if found == "32-true" else "multiplies"
    why = f"the {device} {does} bfloat16 itself"
    if found != "32-true" and not gpu and _strides_over_the_map(cfg):
        found, why = "32-true", "the last maps of these views are too small for bfloat16 here"
    log.info("precision=auto: %s (%s)", found, why)
    cfg.precision = found
    return cfg


def _strides_over_the_map(cfg: DictConfig) -> bool:
    """Whether a convolution's stride is larger than the map that it sees of the smallest view.

    In bfloat16 the gradient of its weights is then partly made of memory that nobody has written,
    on a processor (oneDNN, in PyTorch 2.14).
    """
    size = min(crop.crop_size for crop in recipe.read(cfg.augmentations).crops)
    found = []
    look = lambda layer, inputs, _: found.append(inputs[0].shape[-1] < layer.stride[-1])
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        network = backbone.build(cfg).eval()
        backbone.check_input(network, cfg)
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(look)
        network(torch.empty(1, 3, size, size))
    return any(found)
