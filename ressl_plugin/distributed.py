"""What crosses ranks: gathered keys, and the reference's shuffled batch norm."""

from __future__ import annotations

from collections.abc import Callable

import os

import torch
import torch.distributed as dist
from torch import Tensor


def launched_rank() -> int:
    """This process's rank as its launcher (torchrun, SLURM, Lightning) tells it; 0 if none does."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[n]) for n in names if n in os.environ), 0)


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, (N, D) to (sum of N, D); ranks may hold unequal numbers."""
    if world() == 1:
        return x
    sizes = [torch.zeros(1, dtype=torch.long, device=x.device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    sizes = [int(s) for s in sizes]
    x = x.contiguous()
    if len(set(sizes)) == 1:
        out = x.new_empty((sum(sizes), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n] for p, n in zip(parts, sizes)])


def shuffle(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Exchange images between ranks at random, so that batch statistics cannot leak the answer.

    The reference code's shuffled batch norm: permute the global batch, forward each rank's share,
    un-permute. On one rank the batch is permuted only, which changes nothing for batch norm.

    Args:
        x: (N, ...) this rank's images.

    Returns:
        This rank's share of the permuted global batch, and a function that takes an output of it
        back to this rank's own images in their own order.
    """
    everything = gather(x)
    order = torch.randperm(len(everything), device=x.device)
    if world() > 1:
        dist.broadcast(order, src=0)
    share = order.tensor_split(world())[rank()]
    first = _first_row(len(x), x.device)

    def restore(out: Tensor) -> Tensor:
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return gather(out)[back[first : first + len(x)]]

    return everything[share], restore


def _first_row(n: int, device) -> int:
    """Where this rank's rows start in the gathered batch."""
    if world() == 1:
        return 0
    counts = gather(torch.tensor([[n]], device=device)).flatten().tolist()
    return sum(counts[: rank()])
