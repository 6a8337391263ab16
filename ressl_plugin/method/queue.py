"""FeatureQueue: the FIFO memory Q of past teacher embeddings (ReSSL, Section 3.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ressl_plugin.utils.errors import UserError


class FeatureQueue:
    """A ring of K embeddings over two tensors that the owning module registers as buffers.

    The view holds no state of its own: `rows` (K, D) and `ptr` (1,), long, are written in place,
    so that both are saved, restored and moved as the buffers `queue` and `queue_ptr` of a module.
    `ptr` is the row that the next key replaces, the oldest one.

    Raises:
        UserError: fewer than one row, or tensors of another shape.
    """

    def __init__(self, rows: Tensor, ptr: Tensor):
        if rows.dim() != 2 or rows.numel() == 0:
            raise UserError(f"queue: (K, D) rows with K >= 1 expected; got {tuple(rows.shape)}")
        if ptr.shape != (1,) or ptr.dtype != torch.long:
            raise UserError(f"queue_ptr: one long expected; got {tuple(ptr.shape)} of {ptr.dtype}")
        self.rows, self.ptr = rows, ptr

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def random_rows(size: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
        """(size, dim) random unit vectors, what the memory holds before the first step.

        Raises:
            UserError: size or dim below 1.
        """
        if size < 1 or dim < 1:
            raise UserError(
                f"queue of {size} rows of {dim} numbers: queue_size and proj_output_dim must be "
                "at least 1"
            )
        device = generator.device if generator is not None else None
        return F.normalize(torch.randn(size, dim, generator=generator, device=device), dim=1)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by `keys` (n, D), any n; of more than K keys the last K stay.

        In place and without waiting for the device: the position stays a tensor throughout.

        Raises:
            UserError: keys of another width.
        """
        if keys.dim() != 2 or keys.shape[1] != self.rows.shape[1]:
            raise UserError(
                f"queue of {tuple(self.rows.shape)}: keys (n, {self.rows.shape[1]}) expected; "
                f"got {tuple(keys.shape)}"
            )
        size, skipped = len(self), max(len(keys) - len(self), 0)
        keys = keys[skipped:].to(self.rows.dtype)
        places = torch.arange(skipped, skipped + len(keys), device=self.ptr.device)
        self.rows.index_copy_(0, places.add_(self.ptr).remainder_(size), keys)
        self.ptr.add_(skipped + len(keys)).remainder_(size)
