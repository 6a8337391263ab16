"""The learning rate of the reference code: linear warm-up, then half a cosine, a step at a time."""

from __future__ import annotations

import math
import warnings

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def warmup_cosine(
    step: int, base: float, steps: int, warmup: int, start: float = 0.0, final: float = 0.0
) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`, the first `warmup` rising.

    It rises from `start` to `base`, reached at step `warmup`, and falls to `final` at `steps`.
    """
    if step < warmup:
        return start + (base - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupCosine(LRScheduler):
    """`warmup_cosine` for every parameter group, in closed form: a resumed run cannot drift.

    It reaches the base rate at step `warmup`, as the authors' code does, whose numbers ReSSL is to
    reproduce; the host's (host/pypi/optim.py), which other methods have, a step earlier.
    """

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int, start=0.0, final=0.0):
        self.plan = {"steps": steps, "warmup": warmup, "start": start, "final": final}
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [warmup_cosine(self.last_epoch, base, **self.plan) for base in self.base_lrs]

    def state_dict(self) -> dict:
        """Where it stands. The rest follows from the config, at every start anew."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there; earlier checkpoints hold the plan and the base rates, too."""
        self.last_epoch = state["last_epoch"]
        self._step_count = self.last_epoch + 1
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]


def settings(trainer) -> tuple[list, list]:
    """What the config makes of the optimizers and schedules, before a checkpoint is loaded: the
    hyper-parameters of each optimizer's groups, and the state of each schedule."""
    groups = [
        [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
    return groups, [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]


def apply_settings(trainer, groups: list, states: list) -> None:
    """Put `settings` in the place of a loaded checkpoint's, and go on where the training stands.

    Not where the checkpoint's schedule stood: that may have counted epochs, or there was none. And
    `global_step`, which the teacher's momentum and InfoNCE's share follow, counts the steps that
    what has been trained takes by the config of now, not those of another batch or other images.
    """
    steps = _steps(trainer)
    loop = trainer.fit_loop.epoch_loop.automatic_optimization
    loop.optim_progress.optimizer.step.total.completed = steps
    for optimizer, own in zip(trainer.optimizers, groups):
        for group, values in zip(optimizer.param_groups, own):
            group.update(values)
    for config, state in zip(trainer.lr_scheduler_configs, states):
        by_epoch = config.interval == "epoch"
        _advance(config.scheduler, state, trainer.current_epoch if by_epoch else steps)


def _steps(trainer) -> int:
    """Optimizer steps that what has been trained takes by the config of now."""
    loop, each = trainer.fit_loop, trainer.accumulate_grad_batches
    within = 0 if loop.resumed_on_epoch_end else loop.epoch_loop.batch_progress.current.processed
    return trainer.current_epoch * math.ceil(trainer.num_training_batches / each) + within // each


def _advance(scheduler: LRScheduler, state: dict, step: int) -> None:
    """From the start to `step`: at once in closed form, else as an uninterrupted run gets there."""
    closed = isinstance(scheduler, WarmupCosine)
    scheduler.load_state_dict({**state, "last_epoch": step - 1} if closed else state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimizer step comes between these
        for _ in range(1 if closed else step):
            scheduler.step()
