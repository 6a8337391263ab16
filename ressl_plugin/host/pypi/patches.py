"""solo-learn 1.0.2 (2021) on today's torch and Lightning: its classes, mended in memory.

Each function names the fault. The host's files are never touched.
"""

from functools import wraps
from types import SimpleNamespace

import lightning.pytorch as pl
import torch
import torch.nn.functional as F


def mend_validation() -> None:
    """Lightning 2 refuses `validation_epoch_end`, which averages over the validation set."""
    from solo.methods.base import BaseMethod, BaseMomentumMethod
    from solo.methods.linear import LinearModel

    def collect(self, outputs, batch, batch_idx, dataloader_idx=0):
        # The momentum base gives a pair, the second None without a momentum classifier.
        pair = outputs if isinstance(outputs, tuple) else (outputs,)
        merged = {key: value for part in pair if part for key, value in part.items()}
        self.validation_step_outputs.append(merged)

    def average(self):
        outputs = self.validation_step_outputs
        if not outputs:
            return
        count = sum(out["batch_size"] for out in outputs)
        means = {
            key: sum(out[key] * out["batch_size"] for out in outputs) / count
            for key in outputs[0]
            if key != "batch_size"
        }
        if getattr(self, "knn_eval", False) and not self.trainer.sanity_checking:
            means["val_knn_acc1"], means["val_knn_acc5"] = self.knn.compute()
        self.log_dict(means, sync_dist=True)
        self.validation_step_outputs = []

    del BaseMomentumMethod.validation_epoch_end
    for cls in (BaseMethod, LinearModel):
        del cls.validation_epoch_end
        cls.on_validation_batch_end = collect
        cls.on_validation_epoch_end = average


def mend_dino() -> None:
    """DINO's `clip_gradients(threshold)` has the name of a hook of Lightning's."""
    from solo.methods.dino import DINO

    clip = DINO.clip_gradients

    def clip_gradients(self, first, *args, **kwargs):
        if isinstance(first, int | float):
            return clip(self, first)
        return pl.LightningModule.clip_gradients(self, first, *args, **kwargs)

    DINO.clip_gradients = clip_gradients


def mend_whitening() -> None:
    """W-MSE calls torch.cholesky and torch.triangular_solve, which are gone."""
    from solo.utils import whitening

    def triangular_solve(right, matrix, upper=True):
        return torch.linalg.solve_triangular(matrix, right, upper=upper), matrix

    # the name `torch` in that one file, so that torch itself stays as it is
    old = {"cholesky": torch.linalg.cholesky, "triangular_solve": triangular_solve}
    whitening.torch = SimpleNamespace(**{**vars(torch), **old})


def mend_swav() -> None:
    """SwAV takes two crops alone, and lets its prototypes grow longer than one.

    As on the main branch and in its paper: each large crop's assignment is predicted from every
    other crop, small ones too.
    """
    from solo.methods.swav import SwAV

    host = SwAV.__init__

    @wraps(host)  # its arguments are asked for
    def __init__(self, *args, **kwargs):
        host(self, *args, **kwargs)
        self.prototypes.weight_g.data.fill_(1)
        self.prototypes.weight_g.requires_grad = False

    def training_step(self, batch, batch_idx):
        out = super(SwAV, self).training_step(batch, batch_idx)
        embedded = [F.normalize(self.projector(feats)) for feats in out["feats"]]
        scores = [self.prototypes(z) for z in embedded]
        losses = []
        for i, assignment in enumerate(self.get_assignments(scores[: self.num_large_crops])):
            others = scores[:i] + scores[i + 1 :]
            losses += [F.cross_entropy(p / self.temperature, assignment) for p in others]
        loss = sum(losses) / len(losses)
        if self.queue_size > 0:
            new = torch.stack(embedded[: self.num_large_crops]).detach()
            length = self.queue.size(1)
            self.queue.copy_(torch.cat((new, self.queue), dim=1)[:, :length])
        self.log("train_swav_loss", loss, on_epoch=True, sync_dist=True)
        return loss + out["loss"]

    SwAV.__init__, SwAV.training_step = __init__, training_step


def mend_lars() -> None:
    """LARSWrapper scales the gradients before the closure has computed them: LARS does nothing."""
    from solo.utils.lars import LARSWrapper

    scaled_step = LARSWrapper.step

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        scaled_step(self)
        return loss

    LARSWrapper.step = step


def apply() -> None:
    """All of the above, once, after `solo` has been imported."""
    mend_validation()
    mend_dino()
    mend_whitening()
    mend_swav()
    mend_lars()
