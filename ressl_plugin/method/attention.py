"""Attention reads of the queue: softmax(rows Q^T) Q with their log-sum-exps, in float32.

The relational loss and InfoNCE are both made of them (Eq. 3 to 5 in loss.py). Nothing of the size
of all scores is held: PyTorch's attention for the CPU keeps them in the cache of a core, and
elsewhere an online softmax runs over chunks of the queue.
"""

import torch
from torch import Tensor

from ressl_plugin.utils.errors import UserError

# Rows of the queue read at a time, and scores held, by our own pass. Smaller chunks need less
# memory but leave threads waiting for each other.
_CHUNK, _SCORES = 8192, 2**22
# Rows that PyTorch's attention for the CPU gives to a thread at a time.
_ROWS_A_THREAD = 64


def read(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Every row's mean of the queue under its own relation to it, and the log-sum-exp.

    Exact whatever the size of the scores: the largest is subtracted.

    Args:
        rows: (R, D) float32, queries divided by their temperature.
        queue: (K, D), keys and values in one.

    Returns:
        softmax(rows Q^T) Q (R, D), logsumexp(rows Q^T) (R,), float32.
    """
    if _kernel_fits(rows, queue):
        return _by_kernel(rows, queue)
    return _by_chunks(rows, queue, min(_CHUNK, max(_SCORES // len(rows), 256)))


def _kernel_fits(rows: Tensor, queue: Tensor) -> bool:
    """Whether the kernel takes the queue as it is and has work for every thread."""
    here = rows.device.type == "cpu" and queue.dtype == torch.float32
    return here and len(rows) >= _ROWS_A_THREAD * torch.get_num_threads()


def _by_kernel(rows: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    # F.scaled_dot_product_attention is the same kernel without its second result, the log-sum-exp
    # and without its check that the last dimension is contiguous, as a transposed queue's is not.
    rows, queue = rows.contiguous()[None, None], queue.contiguous()[None, None]
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        rows, queue, queue, scale=1.0
    )
    return out[0, 0], log_sum.flatten()


def _by_chunks(rows: Tensor, queue: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    out, total = torch.zeros_like(rows), rows.new_zeros(len(rows), 1)
    top = torch.full_like(total, -torch.inf)
    buffer = rows.new_empty(len(rows) * min(chunk, len(queue)))
    for block in queue.split(chunk):
        block = block.float()
        score = buffer[: len(rows) * len(block)].view(len(rows), len(block))
        torch.mm(rows, block.T, out=score)
        # online softmax: what was summed so far is rebased on the new maximum
        higher = torch.maximum(top, score.amax(1, keepdim=True))
        rebase = top.sub_(higher).exp_()
        top = higher
        total.mul_(rebase).add_(score.sub_(top).exp_().sum(1, keepdim=True))
        out.mul_(rebase).addmm_(score, block)
    return out.div_(total), total.log_().add_(top).squeeze(1)


def check_rows(loss: str, student: Tensor, teacher: Tensor, queue: Tensor) -> None:
    """The shapes of a loss's inputs fit, and none is empty."""
    fit = teacher.dim() == 2 and student.dim() in (2, 3) and student.shape[-2:] == teacher.shape
    fit = fit and queue.dim() == 2 and queue.shape[1] == teacher.shape[1]
    if not (fit and student.numel() and queue.numel()):
        raise UserError(
            f"{loss}: student (N, D) or (V, N, D), teacher (N, D) and queue (K, D) expected, none "
            f"empty; got {tuple(student.shape)}, {tuple(teacher.shape)}, {tuple(queue.shape)}"
        )


def refuse_second_derivative(loss: str) -> None:
    """For the backward pass of a loss whose gradient is computed in the forward pass.

    That gradient is a constant to autograd. `once_differentiable` refuses a second derivative only
    where the incoming gradient needs one; at the end of a graph, where a loss stands, autograd
    would go on with zero.
    """
    # gradients are recorded during a backward pass only with create_graph=True
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise NotImplementedError(
            f"{loss}: no second derivative (create_graph=True): its gradient is computed in the "
            "forward pass"
        )
