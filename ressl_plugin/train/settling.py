"""What this machine and the views make of `auto`, said and written down before a run begins."""

from __future__ import annotations

import logging

import torch
from omegaconf import DictConfig
from torch import nn

from ressl_plugin.method import backbone
from ressl_plugin.train import stem
from ressl_plugin.utils import precision
from ressl_plugin.utils.devices import runnable
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)


def settled(cfg: DictConfig, stored: DictConfig | None = None) -> DictConfig:
    """A copy of the config with devices, stem and precision by name.

    Args:
        cfg: a complete config.
        stored: the config of the run that goes on, which keeps what it has; empty for a run of the
            host, None where a run begins.

    Raises:
        UserError: devices or settings that this machine cannot have.
    """
    return settle_precision(stem.settle(runnable(cfg), stored), stored)


def settle_precision(cfg: DictConfig, stored: DictConfig | None = None) -> DictConfig:
    """`cfg`, in place, with a precision by name where it says auto.

    Args:
        cfg: of `runnable`.
        stored: the config of the run that goes on, here or on another machine.
    """
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
