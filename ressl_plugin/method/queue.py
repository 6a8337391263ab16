"""The FIFO memory Q of past teacher embeddings (ReSSL, Section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ressl_plugin.utils import distributed
from ressl_plugin.utils.errors import UserError


class FeatureQueue(nn.Module):
    """A memory of K embeddings for any training loop; with several ranks the same one on each.

    Args:
        size: K.
        dim: D, numbers an embedding.
        gather: enqueue the keys of all ranks, in rank order, where there is a process group.
        seed: of the first rows, random unit vectors, which all ranks draw alike.

    Attributes:
        rows: (K, D) float32, a buffer.
        ptr: (1,) long, a buffer: the row that the next key replaces, the oldest one.

    Examples:
        >>> queue = FeatureQueue(4096, 128)
        >>> loss, target_entropy = RelationalLoss()(z_s, z_t, queue.rows)
        >>> queue.enqueue(z_t)

    Raises:
        UserError: size or dim below 1.
    """

    rows: Tensor
    ptr: Tensor

    def __init__(self, size: int, dim: int, gather: bool = True, seed: int = 0) -> None:
        super().__init__()
        rows = random_rows(size, dim, torch.Generator().manual_seed(seed))
        self.register_buffer("rows", rows)
        self.register_buffer("ptr", torch.zeros(1, dtype=torch.long))
        self.gather = gather

    def __len__(self) -> int:
        return len(self.rows)

    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by `keys` (n, D), any n, which may differ between ranks.

        Raises:
            UserError: keys of another width.
        """
        enqueue(self.rows, self.ptr, distributed.gather(keys) if self.gather else keys)

    def extra_repr(self) -> str:
        return f"size={len(self)}, dim={self.rows.shape[1]}, gather={self.gather}"


def random_rows(size: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """(size, dim) random unit vectors, what a memory holds before the first step."""
    if size < 1 or dim < 1:
        raise UserError(
            f"queue of {size} rows of {dim} numbers: queue_size and proj_output_dim must be "
            "at least 1"
        )
    device = generator.device if generator is not None else None
    return F.normalize(torch.randn(size, dim, generator=generator, device=device), dim=1)


@torch.no_grad()
def enqueue(rows: Tensor, ptr: Tensor, keys: Tensor) -> None:
    """Replace the oldest of `rows` (K, D) by `keys` (n, D), any n; of more than K the last K stay.

    `rows` and `ptr` (1,), the oldest row's place, change in place and without waiting for the
    device: they may be buffers of any module.
    """
    if keys.dim() != 2 or keys.shape[1] != rows.shape[1]:
        raise UserError(
            f"queue of {tuple(rows.shape)}: keys (n, {rows.shape[1]}) expected; "
            f"got {tuple(keys.shape)}"
        )
    size, skipped = len(rows), max(len(keys) - len(rows), 0)
    keys = keys[skipped:].to(rows.dtype)
    places = torch.arange(skipped, skipped + len(keys), device=ptr.device)
    rows.index_copy_(0, places.add_(ptr).remainder_(size), keys)
    ptr.add_(skipped + len(keys)).remainder_(size)
