"""Seeds of what is drawn at random while a run trains.

A generator is seeded by where the training stands (epoch, step) and not carried along: so any step
can be drawn again without those before it, a resume in the middle of an epoch is exact, and it does
not matter which back end draws the views. Nor how many ranks share a batch: each draws for all of
its images, some kilobytes, and takes the rows of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Share(NamedTuple):
    """A rank's images among those of a global batch."""

    total: int
    rows: slice


class SharedGenerator(torch.Generator):
    """A generator on the CPU that is seeded alike on all ranks; `rand` draws from it."""

    share: Share | None = None


class OfSteps(NamedTuple):
    """The generators of several steps, whose images `rand` takes for one batch: the same numbers
    for each, in a fraction of the operations."""

    each: list[SharedGenerator]


def rand(n: int, *shape: int, generator: torch.Generator | OfSteps | None = None) -> Tensor:
    """(n, *shape) of [0, 1) on the CPU, a row an image.

    Of a SharedGenerator they are those that one process would have drawn for the same images.
    """
    if isinstance(generator, OfSteps):
        return torch.cat([rand(0, *shape, generator=one) for one in generator.each])
    total, rows = getattr(generator, "share", None) or (n, slice(None))
    device = "cpu" if generator is None else generator.device
    return torch.rand(total, *shape, generator=generator, device=device)[rows].cpu()


def seed_of(*numbers: int) -> int:
    """Well-mixed 63-bit seed: neighbouring steps and ranks share no stream."""
    # the length in front, because SeedSequence takes (1, 2) and (1, 2, 0) for the same
    sequence = np.random.SeedSequence((len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1  # NumPy 1 does not shift these


def permutation(n: int, *numbers: int) -> Tensor:
    """A random order of n things, (n,) long on the CPU: always the same for the same numbers."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*numbers)))
