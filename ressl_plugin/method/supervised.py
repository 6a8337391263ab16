"""The supervised reference of Table 1: the same backbone, trained with labels on weak views."""

from __future__ import annotations

from omegaconf import OmegaConf

from ressl_plugin import host
from ressl_plugin.method import backbone
from ressl_plugin.utils.errors import UserError


class Supervised(host.LinearModel):
    """The host's linear model with the backbone tuned from scratch: cross-entropy.

    Batches are a pre-training run's, `[indexes (N,), [views (N, 3, S, S)], targets (N,)]`, of
    which the first view, a weak one, is taken.
    """

    def __init__(self, cfg):
        cfg = OmegaConf.create({**OmegaConf.to_container(cfg), "finetune": True})
        batches = cfg.get("accumulate_grad_batches") or 1
        cfg.optimizer.lr *= batches  # as the host's pre-training methods do, its linear model not
        cfg.scheduler.min_lr *= batches
        cfg.scheduler.warmup_start_lr *= batches
        if (cfg.data.get("num_classes") or 1) < 2 or cfg.data.get("no_labels"):
            raise UserError("method=supervised: the data has no labels; give labelled data")
        super().__init__(backbone.build(cfg), cfg)
        self.cfg = cfg

    def training_step(self, batch, batch_idx: int):
        _, views, targets = batch
        return super().training_step((views[0], targets), batch_idx)
