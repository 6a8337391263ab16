"""The learning rate of the reference code: linear warm-up, then half a cosine, a step at a time."""

from __future__ import annotations

import math

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
    """`warmup_cosine` for every parameter group, in closed form: a resumed run cannot drift."""

    def __init__(self, optimizer: Optimizer, steps: int, warmup: int, start=0.0, final=0.0):
        self.plan = {"steps": steps, "warmup": warmup, "start": start, "final": final}
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Learning rates of the coming step."""
        return [warmup_cosine(self.last_epoch, base, **self.plan) for base in self.base_lrs]
