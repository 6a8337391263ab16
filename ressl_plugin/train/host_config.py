"""What the host's classes need, derived from a run's config: classes, views, learning rates."""

from __future__ import annotations

import logging

import torch
from omegaconf import DictConfig, OmegaConf

from ressl_plugin.utils.devices import device_count
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)


def host_config(cfg: DictConfig, views: recipe.Recipe, classes: int | None) -> DictConfig:
    """A copy as the host's classes want it: classes and views counted, presets resolved, learning
    rates times batch x devices x nodes / 256, as in the host (which multiplies by accumulation).

    Args:
        cfg: a complete config.
        views: of `cfg.augmentations`, read.
        classes: how many the data have, if known.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    cfg.augmentations = recipe.expand(cfg.augmentations)
    sizes = [crop.crop_size for crop in views.crops]
    cfg.data.num_large_crops = sizes.count(max(sizes))
    cfg.data.num_small_crops = len(sizes) - cfg.data.num_large_crops
    cfg.data.num_classes = classes

    optimizer = cfg.optimizer
    devices = device_count(cfg.devices, torch.cuda.device_count())
    images = optimizer.batch_size * devices * cfg.num_nodes
    rate = optimizer.lr * images / 256
    gathered = cfg.get("accumulate_grad_batches") or 1  # the host multiplies by it, later
    log.info(
        "learning rate %g x %d images / 256 = %g", optimizer.lr, images * gathered, rate * gathered
    )
    optimizer.lr = rate
    optimizer.classifier_lr *= images / 256
    if optimizer.name == "sgd":
        mixed = str(cfg.precision) in ("16", "16-mixed", "bf16", "bf16-mixed")
        clipped = mixed and bool(cfg.get("gradient_clip_val"))
        if clipped and optimizer.kwargs.get("fused"):
            raise UserError(
                "config: optimizer.kwargs.fused=true: Lightning clips no gradients before such a "
                f"step in precision={cfg.precision}; leave it out, or gradient_clip_val"
            )
        # under float16's GradScaler a fused step unscales by itself
        scaler = str(cfg.precision) in ("16", "16-mixed")
        # it has the momentum of all weights or of none: not where some stand still for an epoch
        late = cfg.method in ("dino", "swav")
        not_fused = scaler or clipped or late or optimizer.kwargs.get("foreach")
        fused = {} if not_fused else {"fused": True}
        optimizer.kwargs = {"momentum": 0.9, **fused, **optimizer.kwargs}
    return cfg
