"""ReSSL: Relational Self-Supervised Learning with Weak Augmentation.

M. Zheng et al., NeurIPS 2021, arXiv 2107.09282. Algorithm 1 is `ReSSL.training_step`, Eq. 3 to 5
are in loss.py, Eq. 6 is `ReSSL.update_teacher`, the memory is in queue.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sized
from typing import NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from torch import Tensor, nn

from ressl_plugin import config, host
from ressl_plugin.method import backbone, batchnorm
from ressl_plugin.method.infonce import info_nce
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.nt_xent import nt_xent
from ressl_plugin.method.online import OnlineEvaluation
from ressl_plugin.method.queue import enqueue, random_rows
from ressl_plugin.method.schedule import WarmupCosine
from ressl_plugin.method.skip_nonfinite import SkipNonfinite
from ressl_plugin.utils import distributed, sampling
from ressl_plugin.utils.class_loss import class_loss
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import recipe


def head(d_in: int, hidden: int, d_out: int, norm: bool = False) -> nn.Sequential:
    """The projection head g: Linear - (BatchNorm) - ReLU - Linear."""
    layers = [nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, d_out)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers)


class Seen(NamedTuple):
    """What a training step has seen of a batch, for the callbacks; without gradients."""

    loss: Tensor  # (), the relational loss, without InfoNCE and NT-Xent
    entropy: Tensor  # (), of the target relation
    z: Tensor  # (N, D), the teacher's embeddings
    z_s: Tensor  # (V, N, D), the student's, of each view
    feats: Tensor  # (N, d), the student's of the first view
    classes: dict[str, tuple[Tensor, Tensor]]  # online classifier -> loss (), logits (N, classes)
    targets: Tensor  # (N,), -1 where there is no label


class ReSSL(host.MomentumBase):
    """Student, teacher and memory, trained by the relational loss.

    Built from a config in solo-learn main's schema (config/schema.py has every key). State-dict
    keys are those of the host's own ReSSL: backbone.*, momentum_backbone.*, projector.*,
    momentum_projector.*, queue (K, D), queue_ptr (1,), classifier.*.

    Attributes:
        seen: what the last step has seen; None if its batch was left out (non_finite=skip).
        skipped_steps, skipped_in_a_row: batches left out so far, and since the last that was not.
    """

    seen: Seen | None = None
    skipped_steps = 0
    skipped_in_a_row = 0

    def __init__(self, cfg):
        backbone.prepare(cfg)
        super().__init__(self.add_and_assert_specific_cfg(cfg))
        kwargs = self.cfg.method_kwargs
        self.tau_s, self.tau_t = kwargs.temperature_q, kwargs.temperature_k
        self.student_views, self.teacher_view = _roles(self.cfg)

        backbone.set_stem(self.backbone, self.cfg.backbone.stem)
        self.momentum_backbone = _teacher_of(self.backbone)
        self.projector = head(
            self.features_dim, kwargs.proj_hidden_dim, kwargs.proj_output_dim, kwargs.proj_batchnorm
        )
        self.momentum_projector = _teacher_of(self.projector)
        self.predictor = None
        if kwargs.predictor:  # the journal version's asymmetry: on the student only
            d = kwargs.proj_output_dim
            self.predictor = head(d, kwargs.pred_hidden_dim, d, norm=True)
        self.base_m, self.final_m = self.cfg.momentum.base_tau, self.cfg.momentum.final_tau
        self.infonce_epochs, self.nt_xent_weight = kwargs.infonce_epochs, kwargs.nt_xent_weight
        if self.nt_xent_weight and len(self.student_views) < 2:
            raise UserError(
                f"config: method_kwargs.nt_xent_weight={self.nt_xent_weight}: it contrasts the "
                "contrastive views with each other, and `augmentations` has one; num_crops: 2"
            )
        norm = self.cfg.batchnorm
        grouped = norm.mode == "group" and norm.groups > 1
        self.permutes = grouped and norm.permute
        if grouped:
            for network in self.networks:
                batchnorm.to_groups(network, norm.groups)
        # without statistics over the batch, crops of one size may be forwarded as one batch
        trained = [m for m in (self.backbone, self.projector, self.predictor) if m is not None]
        self.joins_crops = not any(batchnorm.has_batch_norm(m) for m in trained)

        # the host's names, which is why this is no FeatureQueue
        self.register_buffer("queue", random_rows(kwargs.queue_size, kwargs.proj_output_dim))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        # every rank pushes the same gathered rows, so DDP need not broadcast K x D each forward
        self._ddp_params_and_buffers_to_ignore = ["queue", "queue_ptr"]
        self.online = OnlineEvaluation()
        self.skips = self.cfg.faults.non_finite == "skip"
        if self.num_classes < 2:  # nothing trains the online classifiers: DDP must not wait for it
            for classifier in (self.classifier, self.momentum_classifier):
                if classifier is not None:
                    classifier.requires_grad_(False)

    # Algorithm 1

    def training_step(self, batch, batch_idx: int) -> Tensor:
        """Algorithm 1 on one batch `[indexes (N,), [views], targets (N,)]`.

        Returns:
            Relational loss (mean over contrastive views and images), mixed with InfoNCE while that
            warms up, plus NT-Xent between the contrastive views where nt_xent_weight is not 0,
            plus the loss of the online classifier, which sees detached features.
        """
        _, views, targets = batch
        # only the last batch of an epoch can be uneven
        even = self._trainer is not None and batch_idx + 1 < self.trainer.num_training_batches

        teacher = self.momentum_forward(views[self.teacher_view], even, batch_idx)
        feats, z_s = self.student_forward([views[i] for i in self.student_views])
        z_t = teacher["z"]
        loss, entropy = relational_loss(z_s, z_t, self.queue, self.tau_s, self.tau_t)  # Eq. 3-5
        total, tau = loss, self.cfg.method_kwargs.infonce_temperature
        if shares := self.loss_shares():  # the journal version's warm-up
            total = shares[0] * loss + shares[1] * info_nce(z_s, z_t, self.queue, tau)
        if self.nt_xent_weight:
            total = total + self.nt_xent_weight * nt_xent(z_s, tau)
        if self.skips and not distributed.all_true(total.isfinite()):
            return self._leave_out()
        enqueue(self.queue, self.queue_ptr, distributed.gather(z_t, even))

        class_loss, classes = self.classify(feats, teacher["feats"], targets)
        self.seen = Seen(
            loss.detach(), entropy, z_t, z_s.detach(), feats.detach(), classes, targets
        )
        self.online.add(self)
        return total + class_loss

    def optimizer_step(self, *args, **kwargs) -> None:
        """One step of the optimizer, whose closure is forward and backward; then Eq. 6."""
        m = self.momentum_now(self.trainer.global_step)
        LightningModule.optimizer_step(self, *args, **kwargs)  # the host's moves the teacher, too
        self.update_teacher(m)

    @torch.no_grad()
    def update_teacher(self, m: float | Tensor) -> None:
        """F_t <- m F_t + (1 - m) F_s, parameters only (Eq. 6); m may be a tensor () beside them."""
        pairs = self.momentum_pairs
        student = [p for s, _ in pairs for p in s.parameters()]
        teacher = [p for _, t in pairs for p in t.parameters()]
        weight = [(1 - m).float()] * len(teacher) if isinstance(m, Tensor) else 1 - m
        torch._foreach_lerp_(teacher, student, weight)

    def momentum_now(self, step: int) -> float:
        """m after `step` optimizer steps: constant, or the host's cosine from base to final."""
        base, final = self.base_m, self.final_m
        if base == final:
            return base
        turn = math.pi * step / self.trainer.estimated_stepping_batches
        return final - (final - base) * (math.cos(turn) + 1) / 2

    def student_forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features of the first crop (N, d) and embeddings of all crops (V, N, D).

        Each crop is a forward pass of its own, as in the reference: batch norm sees N images at a
        time. Where there is none, crops of one size are one batch, with the same result.
        """
        if self.joins_crops and len({c.shape for c in crops}) == 1:
            feats = self.backbone(self._layout(torch.cat(crops)))
            z = self._embed(feats)
            return feats[: len(crops[0])], z.unflatten(0, (len(crops), -1))
        feats = [self.backbone(self._layout(crop)) for crop in crops]
        return feats[0], torch.stack([self._embed(f) for f in feats])

    def _embed(self, feats: Tensor) -> Tensor:
        z = self.projector(feats)
        if self.predictor is not None:
            z = self.predictor(z)
        return F.normalize(z.float(), dim=-1)

    @torch.no_grad()
    def momentum_forward(
        self, X: Tensor, even: bool = False, batch_idx: int = 0
    ) -> dict[str, Tensor]:
        """Teacher: (N, 3, H, W) to feats (N, d) and z (N, D) of unit length, no gradient.

        While training its batch norm sees the images in another order than the student's, with
        batchnorm.mode=shuffle across ranks, with permute=true within this one, whose order is
        drawn from (seed, epoch, `batch_idx`, rank). What is returned is in the images' own order.

        `even` promises that all ranks hold equally many images: then nothing waits for the device.
        """
        restore = lambda t: t
        if self.training and self.cfg.batchnorm.mode == "shuffle":
            X, restore = distributed.shuffle(X, even)
        elif self.training and self.permutes:
            order, back = (t.to(X.device, non_blocking=True) for t in self.orders(X, batch_idx))
            X, restore = X[order], lambda t: t[back]
        feats = self.momentum_backbone(self._layout(X))
        z = F.normalize(self.momentum_projector(feats).float(), dim=-1)
        return {"feats": restore(feats), "z": restore(z)}

    def orders(self, X: Sized, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The teacher's order of N images, and that which puts its rows back: (N,), on the host."""
        place = (self.current_epoch, batch_idx, distributed.rank())
        order = sampling.permutation(len(X), self.cfg.seed, *place)
        return order, order.argsort()

    def _layout(self, X: Tensor) -> Tensor:
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)

    def loss_shares(self) -> tuple[float, float] | None:
        """ReSSL's and InfoNCE's, which falls linearly from 1 to 0 in `infonce_epochs` epochs; None
        once the first is all there is."""
        if not self.infonce_epochs or self._trainer is None:
            return None
        done = self.trainer.global_step * self.max_epochs / self.trainer.estimated_stepping_batches
        share = max(0.0, 1 - done / self.infonce_epochs)
        return (1 - share, share) if share else None

    def _leave_out(self) -> Tensor:
        """The loss of a batch that leaves no trace (SkipNonfinite sees to it): 0 that reaches every
        weight, as Lightning refuses None and DDP waits for every gradient."""
        self.seen = None
        weights = [p for group in self.learnable_params for p in group["params"]]
        return sum(0 * p.flatten()[0] for p in weights if p.requires_grad)

    def classify(self, feats: Tensor, teacher_feats: Tensor, targets: Tensor):
        """Loss of the online classifiers on detached features, (); what `Seen` has of each."""
        if self.num_classes < 2:
            return 0.0, {}
        logits = {"train": self.classifier(feats.detach())}
        if self.momentum_classifier is not None:
            logits["train_momentum"] = self.momentum_classifier(teacher_feats)
        losses = {name: class_loss(found, targets) for name, found in logits.items()}
        seen = {name: (losses[name].detach(), found.detach()) for name, found in logits.items()}
        return sum(losses.values()), seen

    # What is logged

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.online.trained(self), sync_dist=True)
        self.log("tau", self.momentum_now(self.trainer.global_step), sync_dist=True)

    def validation_step(self, batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Online classifier and kNN on clean images (N, 3, S, S)."""
        self.online.validate(self, *batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.online.validated(self), sync_dist=True)

    # What Lightning and the host ask for

    def configure_callbacks(self) -> list:
        """What goes with the method whoever makes the Trainer."""
        return [self.online, *([SkipNonfinite()] if self.skips else [])]

    def on_train_start(self) -> None:
        """All ranks begin with rank 0's memory; DDP leaves it alone from here on."""
        distributed.broadcast([self.queue, self.queue_ptr])

    def on_validation_start(self) -> None:
        """All ranks evaluate the same network: each has normalised its own images, and the mean
        of their statistics is what one process with as many groups has."""
        distributed.average_(batchnorm.running_statistics(self.networks))

    def on_save_checkpoint(self, checkpoint) -> None:
        """As for evaluation; the state dict, made already, holds the very tensors changed here."""
        super().on_save_checkpoint(checkpoint)
        distributed.average_(batchnorm.running_statistics(self.networks))

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Student: (N, 3, H, W) to feats (N, d), logits (N, classes), z (N, D) of unit length."""
        out = super().forward(X)
        return {**out, "z": self._embed(out["feats"])}

    @property
    def networks(self) -> list[nn.Module]:
        """Student encoder and head, teacher encoder and head, predictor if there is one."""
        parts = [self.backbone, self.projector, self.momentum_backbone, self.momentum_projector]
        return parts + ([self.predictor] if self.predictor is not None else [])

    @property
    def learnable_params(self) -> list[dict]:
        """The host's parameter groups and the heads."""
        extra = [{"name": "projector", "params": self.projector.parameters()}]
        if self.predictor is not None:
            extra.append({"name": "predictor", "params": self.predictor.parameters()})
        return super().learnable_params + extra

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(student, teacher) modules that Eq. 6 averages."""
        return [*super().momentum_pairs, (self.projector, self.momentum_projector)]

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        """Fill in the defaults of the host and of the plugin; check the method's own settings."""
        if OmegaConf.select(cfg, "momentum") is None:
            cfg.momentum = {}
        # 1.0.2's base class has no such hook
        base = getattr(host.MomentumBase, "add_and_assert_specific_cfg", lambda cfg: cfg)
        return config.fill_method(base(cfg))

    def configure_optimizers(self):
        """The host's optimizer; warm-up and half-cosine a step as in the reference code."""
        if self.scheduler != "warmup_cosine" or self.scheduler_interval != "step":
            return super().configure_optimizers()
        self.scheduler = "none"
        try:
            optimizer = super().configure_optimizers()
        finally:
            self.scheduler = "warmup_cosine"
        steps = self.trainer.estimated_stepping_batches
        plan = WarmupCosine(
            optimizer,
            steps=steps,
            warmup=round(self.warmup_epochs * steps / self.max_epochs),
            start=self.warmup_start_lr,
            final=self.min_lr,
        )
        return [optimizer], [{"scheduler": plan, "interval": "step"}]


def _teacher_of(student: nn.Module) -> nn.Module:
    """A copy with the same weights and no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


def _roles(cfg) -> tuple[list[int], int]:
    """Positions of the contrastive views and of the weak view in a batch's list of views."""
    if cfg.get("augmentations"):
        read = recipe.read(cfg.augmentations)
        return list(read.student), read.teacher
    large = cfg.data.get("num_large_crops") or 2
    small = cfg.data.get("num_small_crops") or 0
    return [0, *range(large, large + small)], 1
