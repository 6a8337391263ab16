"""What crosses ranks: gathered keys, agreed decisions, and the reference's shuffled batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

ASK = 8  # steps on GPUs between two questions to all ranks


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if world() > 1 else 0


@torch.no_grad()
def gather(x: Tensor, even: bool = False) -> Tensor:
    """Rows of all ranks in rank order, (N, D) to (sum of N, D); ranks may hold unequal numbers.

    `even` promises that they hold equally many: then nothing waits for the device.
    """
    if world() == 1:
        return x
    x = x.contiguous()
    sizes = [len(x)] * world() if even else _sizes(x)
    if len(set(sizes)) == 1:
        out = x.new_empty((sum(sizes), *x.shape[1:]))
        dist.all_gather_into_tensor(out, x)
        return out
    padded = x.new_zeros((max(sizes), *x.shape[1:]))
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([p[:n] for p, n in zip(parts, sizes)])


def _sizes(x: Tensor) -> list[int]:
    own = torch.tensor([len(x)], device=x.device)
    out = own.new_empty(world())
    dist.all_gather_into_tensor(out, own)
    return out.tolist()


def gather_objects(own) -> list:
    """Every rank's object, in rank order; they are pickled."""
    if world() == 1:
        return [own]
    found = [None] * world()
    dist.all_gather_object(found, own)
    return found


@torch.no_grad()
def all_true(flag: Tensor) -> Tensor:
    """Whether a bool () holds on all ranks, on the device: nothing waits for it."""
    if world() == 1:
        return flag
    flag = flag.to(torch.uint8)
    dist.all_reduce(flag, dist.ReduceOp.MIN)
    return flag.bool()


class AnyRank:
    """Whether any rank says yes. Ranks hear of a signal in different steps, or not at all.

    To ask makes the processor wait for the device, so on GPUs they ask every few steps only. A yes
    is remembered: the step of the question may be one in which nobody can act on it.
    """

    def __init__(self):
        self._yes, self._calls = False, 0

    def says(self, own: bool, device: torch.device, now: bool = False) -> bool:
        """The same answer on all ranks; `own` is this one's, `now` asks whatever the step."""
        if world() == 1:
            return own
        self._calls += 1
        if not self._yes and (now or self._calls % ask_every(device) == 0):
            self._yes = not all_true(torch.tensor(not own, device=device))
        return self._yes


def ask_every(device: torch.device) -> int:
    """Steps between two questions."""
    return ASK if device.type == "cuda" else 1


@torch.no_grad()
def all_reduce(x: Tensor) -> Tensor:
    """Sum over ranks of a tensor of one shape."""
    if world() == 1:
        return x
    x = x.clone()
    dist.all_reduce(x)
    return x


@torch.no_grad()
def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors (of one dtype) by their means over ranks, in one exchange."""
    if world() == 1 or not tensors:
        return
    flat = all_reduce(torch.cat([t.flatten() for t in tensors])) / world()
    for t, mean in zip(tensors, flat.split([t.numel() for t in tensors])):
        t.copy_(mean.view_as(t))


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Give all ranks rank 0's values."""
    if world() > 1:
        for t in tensors:
            dist.broadcast(t, src=0)


def shuffle(x: Tensor, even: bool = False) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Exchange images between ranks at random, so that batch statistics cannot leak the answer.

    The reference code's shuffled batch norm: permute the global batch, forward each rank's share,
    un-permute. On one rank the batch is permuted only, which changes nothing for batch norm.

    Args:
        x: (N, ...) this rank's images.
        even: promises that all ranks hold equally many: then nothing waits for the device.

    Returns:
        This rank's share of the permuted global batch, and a function that takes an output of it
        back to this rank's own images in their own order.
    """
    sizes = [len(x)] * world() if even or world() == 1 else _sizes(x)
    even = len(set(sizes)) == 1
    everything = gather(x, even)
    order = torch.randperm(len(everything), device=x.device)
    broadcast([order])
    share = order.tensor_split(world())[rank()]
    first = sum(sizes[: rank()])

    def restore(out: Tensor) -> Tensor:
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return gather(out, even)[back[first : first + len(x)]]

    return everything[share], restore
