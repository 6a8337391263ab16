"""Seeds of what is drawn at random while a run trains.

A generator is seeded by where the training stands (epoch, step, rank) and not carried along: so any
step can be drawn again without those before it, a resume in the middle of an epoch is exact, and it
does not matter which back end draws the views.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def seed_of(*numbers: int) -> int:
    """Well-mixed 63-bit seed: neighbouring steps and ranks share no stream."""
    # the length in front, because SeedSequence takes (1, 2) and (1, 2, 0) for the same
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1  # NumPy 1 does not shift these


def permutation(n: int, *numbers: int) -> Tensor:
    """A random order of n things, (n,) long on the CPU: always the same for the same numbers."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*numbers)))


def permuted(x: Tensor, *numbers: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows (n, ...) in the order of `permutation`, and what puts such rows back in their own."""
    order = permutation(len(x), *numbers)
    back = order.argsort().to(x.device, non_blocking=True)
    return x[order.to(x.device, non_blocking=True)], lambda rows: rows[back]
