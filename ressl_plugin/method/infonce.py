"""The InfoNCE loss on the same memory, with which the journal version (arXiv 2203.08717) warms up.

    L = log(e^{s+} + sum_k e^{s_k}) - s+ = softplus(g),   g = logsumexp_k(s_k) - s+
    s+ = z_s . z_t / tau,   s_k = z_s . q_k / tau,   m = sum_k softmax_k(s_k) q_k
    dL/dz_s = sigmoid(g) (m - z_t) / tau

As in loss.py the gradient is known when the forward pass ends, from one read of the memory: nothing
of size N x K is kept for the backward pass, and the memory may be overwritten in place before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.method.attention import check_rows, read, refuse_second_derivative
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.precision import float32_products


def info_nce(student: Tensor, teacher: Tensor, queue: Tensor, tau: float) -> Tensor:
    """-log of the teacher's embedding of the same image among the memory (MoCo's Eq. 1).

    Float32 arithmetic, whatever autocast and the inputs' dtype say. The memory is read in chunks;
    few rows (K <= 512) may be one, whose scores, V x N x K, are held while the loss is computed.

    Args:
        student: (V, N, D) or (N, D) unit rows; the only input that receives a gradient.
        teacher: (N, D) unit rows, the positives.
        queue: (K, D) unit rows, the negatives.
        tau: temperature.

    Returns:
        Scalar float32, mean over views and images.

    Raises:
        UserError: shapes that do not fit, an empty queue, a temperature not above zero.
        NotImplementedError: in a backward pass with create_graph=True; there is no second
            derivative.
    """
    check_rows("InfoNCE", student, teacher, queue)
    if not tau > 0:
        raise UserError(f"InfoNCE: the temperature must be above 0; got {tau}")
    return _InfoNCE.apply(student, teacher, queue, tau)


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, queue, tau):
        with torch.autocast(student.device.type, enabled=False), float32_products():
            keys = teacher.float().expand(student.shape).reshape(-1, student.shape[-1])  # [V*N, D]
            rows = student.float().reshape(keys.shape) / tau
            mean, log_sum = read(rows, queue)
            gap = log_sum - torch.linalg.vecdot(rows, keys)
            gradient = gap.sigmoid()[:, None] * (mean - keys) / (tau * len(rows))
            loss = F.softplus(gap).mean()
        ctx.save_for_backward(gradient.view(student.shape))
        ctx.dtype = student.dtype
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        refuse_second_derivative("InfoNCE")
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.dtype), None, None, None
