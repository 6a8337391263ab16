"""Batches that are left out under a gradient scaler: precision=16-mixed, as far as a CPU shows it.

The scaler of the CPU is the GPU's class; autocast stays off, because not every operation has a
half-precision kernel here.
"""

import contextlib
import math

import lightning.pytorch as pl
import pytest
import torch
from helpers import make_config, random_batches
from lightning.pytorch.plugins import MixedPrecision

from ressl_plugin.method import ressl
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.method.ressl import ReSSL

SMALL = {"name": "timm:resnet10t", "kwargs": {"channels": [8, 8, 16, 16]}, "stem": "auto"}


class Scaled(MixedPrecision):
    def autocast_context_manager(self):
        return contextlib.nullcontext()


class Watch(pl.Callback):
    """What every step leaves behind: weights, momentum, teacher, place in the queue, scale."""

    def __init__(self, scaler):
        self.scaler, self.after = scaler, []

    def on_train_batch_end(self, trainer, module, *_):
        (optimizer,) = trainer.optimizers
        weights = [p.detach().clone() for p in module.backbone.parameters()]
        teacher = [p.detach().clone() for p in module.momentum_backbone.parameters()]
        momenta = [s["momentum_buffer"].clone() for s in optimizer.state.values()]
        rest = (int(module.queue_ptr), self.scaler.get_scale(), trainer.global_step)
        self.after.append((weights, momenta, teacher, *rest))


def train(bad, fused, monkeypatch, steps=4):
    """A run whose steps in `bad` (from 0) have a loss of NaN."""
    count = iter(range(99))

    def loss(*args):
        found = relational_loss(*args)
        return type(found)(found[0] * math.nan, found[1]) if next(count) in bad else found

    monkeypatch.setattr(ressl, "relational_loss", loss)
    torch.manual_seed(0)
    module = ReSSL(
        make_config(
            backbone=SMALL, faults={"non_finite": "skip"}, scheduler__warmup_epochs=0,
            optimizer__kwargs={"momentum": 0.9, "fused": fused},
        )
    )  # fmt: skip
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    seen = Watch(scaler)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[seen],
        plugins=[Scaled("16-mixed", "cpu", scaler)],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(random_batches(steps, 8), batch_size=None))
    return module, seen.after


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("bad", [{0}, {2}, {0, 1, 2, 3}])
def test_a_batch_is_left_out_under_a_scaler(fused, bad, monkeypatch):
    module, after = train(bad, fused, monkeypatch)
    assert module.skipped_steps == len(bad)
    start = None
    for step, (weights, momenta, teacher, ptr, scale, steps) in enumerate(after):
        good = step + 1 - len([b for b in bad if b <= step])
        assert ptr == 8 * good % 40, "the memory sees the other batches only"
        assert scale == 8.0, "no overflow: the scale stays"
        assert steps == step + 1, "the schedule goes on"
        assert all(t.isfinite().all() for t in (*weights, *momenta))
        if step in bad and start is not None:
            assert all(map(torch.equal, weights, start[0]))
            assert all(map(torch.equal, momenta, start[1]))
        elif step in bad:
            assert not momenta, "the optimizer has not begun"
        elif start is not None:
            assert not all(map(torch.equal, weights, start[0]))
        if step - 1 in bad and len(bad) < 4 and step > 1:  # seen a step later: Eq. 6 comes last
            assert not all(map(torch.equal, teacher, start[2])), "it follows all the same"
        start = (weights, momenta, teacher)
