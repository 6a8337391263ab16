"""A small run with everything a resume can get wrong, for test_resume and test_checkpointing."""

import json
import os
import random
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ressl_plugin.run import checkpoint
from ressl_plugin.train import checkpoint_io, checkpointing
from ressl_plugin.utils import distributed

EPOCHS, BATCHES, BATCH = 3, 5, 4
STEPS = EPOCHS * BATCHES


class Images(TensorDataset):
    def __init__(self):
        super().__init__(torch.randn(22, 6, generator=torch.Generator().manual_seed(5)))

    def __getitem__(self, index):
        return super().__getitem__(index)[0]


class PositionedLoader:
    """Shuffled by (seed, epoch); knows its place; the batches' noise is drawn globally."""

    def __init__(self):
        self.images, self.epoch, self.given, self.start = Images(), 0, 0, 0

    @property
    def sampler(self):
        return self

    def set_epoch(self, epoch):
        self.epoch = epoch

    def state_dict(self):
        return {"epoch": self.epoch, "given": self.given}

    def load_state_dict(self, state):
        self.epoch, self.start = state["epoch"], state["given"] % BATCHES

    def __len__(self):
        return BATCHES

    def __iter__(self):
        order = torch.randperm(22, generator=torch.Generator().manual_seed(self.epoch))
        first, self.start = self.start, 0
        for b in range(first, BATCHES):
            self.given = b + 1
            rows = torch.stack([self.images[i] for i in order[b * BATCH : (b + 1) * BATCH]])
            yield rows + 0.1 * torch.randn_like(rows)


def plain_loader():
    """The order and the workers' seeds come from the global generator."""
    return DataLoader(Images(), BATCH, shuffle=True, drop_last=True)


class Toy(pl.LightningModule):
    """A student, a teacher that follows it after each step, a memory, all three generators."""

    def __init__(self, log_file, kill_at=None, fault=None):
        super().__init__()
        self.log_file, self.kill_at, self.fault = Path(log_file), kill_at, fault
        self.student = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.teacher = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))
        self.teacher.requires_grad_(False)
        self.register_buffer("queue", torch.randn(16, 8))

    def on_fit_start(self):
        torch.rand(self.global_rank)  # every rank draws numbers of its own

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand()
        keys = self.teacher(batch)
        loss = (self.student(batch * (1 + 0.01 * noise)) - keys).square().mean()
        loss = loss + 0.01 * (keys @ self.queue.T).logsumexp(1).mean()
        self.queue = torch.cat([distributed.gather(keys.detach()), self.queue])[:16]
        step = self.current_epoch * self.trainer.num_training_batches + batch_idx
        with open(f"{self.log_file}.{self.global_rank}", "a") as file:
            file.write(json.dumps([step, loss.item()]) + "\n")
        if self.fault and step == self.fault[0]:
            loss = self.fault[1](loss)
        if self.kill_at == step:
            os._exit(9)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters()):
                t.mul_(0.9).add_(s, alpha=0.1)

    def validation_step(self, batch, batch_idx):
        self.log("val", self.student(batch).mean() + torch.rand(()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9)
        # as the method does: makes Lightning set up the loader before it knows of the checkpoint
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


CONFIG = {"method": "toy", "max_epochs": EPOCHS, "checkpoint": {"frequency": 1, "every_n_steps": 0}}


def train(run, loader, kill_at=None, fault=None, resume=True, validate=True, every=1, **kwargs):
    """A run as the command line makes it: seeded, resumed from whatever checkpoint there is."""
    pl.seed_everything(3, verbose=False)
    frequency = kwargs.pop("frequency", 1)
    toy = Toy(run / "losses", kill_at, fault)
    settings = {**CONFIG["checkpoint"], "frequency": frequency, "every_n_steps": every}
    callback = checkpointing.CheckpointCallback(run, {**CONFIG, "checkpoint": settings})
    trainer = pl.Trainer(
        **{"max_epochs": EPOCHS, "accelerator": "cpu", "devices": 1, **kwargs},
        callbacks=[callback],
        plugins=[checkpoint_io.AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=run,
    )
    found = resume and any(p.exists() for p in (run / "last.ckpt", run / "previous" / "last.ckpt"))
    held_out = DataLoader(Images(), 11) if validate else None
    trainer.fit(toy, loader(), held_out, ckpt_path=run / "last.ckpt" if found else None)
    return trainer, toy


def losses(run, rank=0):
    """Loss of every step; a step that was computed twice must have come out the same."""
    found = {}
    for line in (run / f"losses.{rank}").read_text().splitlines():
        step, loss = json.loads(line)
        assert found.setdefault(step, loss) == loss, f"step {step} came out differently"
    return found


def same_run(run, reference):
    assert losses(run) == losses(reference)
    ours, theirs = checkpoint.load(run), checkpoint.load(reference)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", checkpointing.RNG):
        assert equal(ours[part], theirs[part]), part
    return True


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
