"""ReSSL: Relational Self-Supervised Learning with Weak Augmentation.

M. Zheng et al., NeurIPS 2021, arXiv 2107.09282. Algorithm 1 is `ReSSL.training_step`, Eq. 3 to 5
are in loss.py, Eq. 6 is `ReSSL.update_teacher`, the memory is in queue.py.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from omegaconf import OmegaConf
from torch import Tensor, nn

from ressl_plugin import config, host
from ressl_plugin.method import backbone, batchnorm
from ressl_plugin.method.infonce import info_nce
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.online import OnlineEvaluation
from ressl_plugin.method.queue import FeatureQueue
from ressl_plugin.method.schedule import WarmupCosine
from ressl_plugin.method.skip_nonfinite import SkipNonfinite
from ressl_plugin.utils import distributed, sampling
from ressl_plugin.views import recipe


def head(d_in: int, hidden: int, d_out: int, norm: bool = False) -> nn.Sequential:
    """The projection head g: Linear - (BatchNorm) - ReLU - Linear."""
    layers = [nn.Linear(d_in, hidden), nn.ReLU(), nn.Linear(hidden, d_out)]
    if norm:
        layers.insert(1, nn.BatchNorm1d(hidden))
    return nn.Sequential(*layers)


class ReSSL(SkipNonfinite, OnlineEvaluation, host.MomentumBase):
    """Student, teacher and memory, trained by the relational loss.

    Built from a config in solo-learn main's schema (see schema.py for every key). State-dict keys
    are those of the host's own ReSSL: backbone.*, momentum_backbone.*, projector.*,
    momentum_projector.*, queue (K, D), queue_ptr (1,), classifier.*.

    Raises:
        UserError: a config that cannot work.
    """

    def __init__(self, cfg):
        backbone.offer(cfg.backbone.name)
        backbone.check_kwargs(cfg)
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
        self._set_batchnorm()
        # without statistics over the batch, crops of one size may be forwarded as one batch
        trained = [m for m in (self.backbone, self.projector, self.predictor) if m is not None]
        self.joins_crops = not any(batchnorm.has_batch_norm(m) for m in trained)
        self.rest_untrained()

        rows = FeatureQueue.random_rows(kwargs.queue_size, kwargs.proj_output_dim)
        self.register_buffer("queue", rows)
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))
        # every rank pushes the same gathered rows, so DDP need not broadcast K x D each forward
        self._ddp_params_and_buffers_to_ignore = ["queue", "queue_ptr"]
        self.start_online()

    @staticmethod
    def add_and_assert_specific_cfg(cfg):
        """Fill in the defaults of the host and of the plugin; check the method's own settings."""
        if OmegaConf.select(cfg, "momentum") is None:
            cfg.momentum = {}
        # 1.0.2's base class has no such hook
        base = getattr(host.MomentumBase, "add_and_assert_specific_cfg", lambda cfg: cfg)
        return config.fill_method(base(cfg))

    def _set_batchnorm(self) -> None:
        norm = self.cfg.batchnorm
        grouped = norm.mode == "group" and norm.groups > 1
        self.permutes = grouped and norm.permute
        if grouped:
            for network in self.networks:
                batchnorm.to_groups(network, norm.groups)

    @property
    def networks(self) -> list[nn.Module]:
        """Student encoder and head, teacher encoder and head, predictor if there is one."""
        parts = [self.backbone, self.projector, self.momentum_backbone, self.momentum_projector]
        return parts + ([self.predictor] if self.predictor is not None else [])

    @property
    def memory(self) -> FeatureQueue:
        """The queue as a FIFO over this module's buffers."""
        return FeatureQueue(self.queue, self.queue_ptr)

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

    def forward(self, X: Tensor) -> dict[str, Tensor]:
        """Student: (N, 3, H, W) to feats (N, d), logits (N, classes), z (N, D) of unit length."""
        out = super().forward(X)
        return {**out, "z": self._embed(out["feats"])}

    def multicrop_forward(self, X: Tensor) -> dict[str, Tensor]:
        """Student without the online classifier: feats (N, d) and z (N, D)."""
        feats = self.backbone(self._layout(X))
        return {"feats": feats, "z": self._embed(feats)}

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
            place = (self.current_epoch, batch_idx, distributed.rank())
            order = sampling.permutation(len(X), self.cfg.seed, *place)
            back = order.argsort().to(X.device, non_blocking=True)
            X, restore = X[order.to(X.device, non_blocking=True)], lambda t: t[back]
        feats = self.momentum_backbone(self._layout(X))
        z = F.normalize(self.momentum_projector(feats).float(), dim=-1)
        return {"feats": restore(feats), "z": restore(z)}

    def _layout(self, X: Tensor) -> Tensor:
        return X if self.no_channel_last else X.to(memory_format=torch.channels_last)

    def training_step(self, batch, batch_idx: int) -> Tensor:
        """Algorithm 1 on one batch `[indexes (N,), [views], targets (N,)]`.

        Returns:
            Relational loss (mean over contrastive views and images) plus the loss of the online
            classifier, which sees detached features.
        """
        _, views, targets = batch
        views = [views] if isinstance(views, Tensor) else views
        self.before_step()
        # only the last batch of an epoch can be uneven
        even = self._trainer is not None and batch_idx + 1 < self.trainer.num_training_batches
        teacher = self.momentum_forward(views[self.teacher_view], even, batch_idx)
        z_t = teacher["z"]
        feats, z_s = self._student([views[i] for i in self.student_views])

        loss, entropy = self._objective(z_s, z_t)
        if self.to_be_skipped(loss):
            return self.skip()
        self.memory.enqueue(distributed.gather(z_t, even))

        uniform = math.log(len(self.queue)) or 1.0  # one row: the relation has no entropy at all
        stats = {
            "train_ressl_loss": loss,
            "target_entropy": entropy / uniform,
            "embedding_spread": 1 - z_t.mean(0).square().sum(),
        }
        self._record(stats, len(z_t), batch_idx)
        return loss + self.online_loss(feats, teacher["feats"], targets)

    def _student(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
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

    def _objective(self, z_s: Tensor, z_t: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and mean entropy of the target relation, both scalars; InfoNCE warms up first."""
        loss, entropy = relational_loss(z_s, z_t, self.queue, self.tau_s, self.tau_t)
        share = self._infonce_share()
        if share > 0:
            tau = self.cfg.method_kwargs.infonce_temperature
            loss = (1 - share) * loss + share * info_nce(z_s, z_t, self.queue, tau)
        return loss, entropy

    def _infonce_share(self) -> float:
        """1 at the start, falling linearly to 0 after `infonce_epochs` epochs."""
        epochs = self.cfg.method_kwargs.infonce_epochs
        if not epochs or self._trainer is None:
            return 0.0
        done = self.trainer.global_step * self.max_epochs
        return max(0.0, 1 - done / self.trainer.estimated_stepping_batches / epochs)

    def _record(self, stats: dict[str, Tensor], n: int, batch_idx: int) -> None:
        """Add to the epoch's means on the device; write single steps only on a cadence."""
        self.means.add(stats, n)
        if self._trainer is not None and batch_idx % self.cfg.performance.log_every == 0:
            self.log("loss", stats["train_ressl_loss"].detach(), prog_bar=True, logger=False)

    def on_train_epoch_end(self) -> None:
        """Log the epoch's means."""
        self.log_dict(self.means.pop(), sync_dist=True)
        self.log("tau", self.momentum_now(self.trainer.global_step), sync_dist=True)

    def optimizer_step(self, *args, **kwargs) -> None:
        """One step of the optimizer, whose closure is forward and backward; then Eq. 6."""
        m = self.momentum_now(self.trainer.global_step)
        LightningModule.optimizer_step(self, *args, **kwargs)  # the host's moves the teacher, too
        self.update_teacher(m)

    def on_train_start(self) -> None:
        """All ranks begin with rank 0's memory; DDP leaves it alone from here on."""
        distributed.broadcast([self.queue, self.queue_ptr])

    def momentum_now(self, step: int) -> float:
        """m after `step` optimizer steps: constant, or the host's cosine from base to final."""
        base, final = self.cfg.momentum.base_tau, self.cfg.momentum.final_tau
        if base == final:
            return base
        turn = math.pi * step / self.trainer.estimated_stepping_batches
        return final - (final - base) * (math.cos(turn) + 1) / 2

    @torch.no_grad()
    def update_teacher(self, m: float) -> None:
        """F_t <- m F_t + (1 - m) F_s, parameters only (Eq. 6)."""
        pairs = self.momentum_pairs
        student = [p for s, _ in pairs for p in s.parameters()]
        teacher = [p for _, t in pairs for p in t.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - m)

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
