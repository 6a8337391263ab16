"""The relational loss (ReSSL, Eq. 3-5) as one pass over the queue.

    L   = logsumexp_k(z_s . q_k / tau_s) - z_s . m_t / tau_s       (Eq. 5 written out)
    m_t = sum_k softmax_k(z_t . q_k / tau_t) q_k                   target read   (Eq. 3)
    m_s = sum_k softmax_k(z_s . q_k / tau_s) q_k                   student read  (Eq. 4)
    dL/dz_s = (m_s - m_t) / tau_s

The rows of the teacher and of every student view are stacked into one matrix, and one attention
read of the queue (attention.py) gives all reads and log-sum-exps. So nothing of size N x K exists
(but for a queue of K <= 512 rows), the queue needs neither a gradient nor a copy, and the gradient
is known when the forward pass ends.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ressl_plugin.method.attention import check_rows, read, refuse_second_derivative
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.precision import float32_products

# Up to this many queue rows the formula itself is as fast.
_FEW_ROWS = 512


class Relation(NamedTuple):
    """What the relational loss finds."""

    loss: Tensor  # scalar, float32, nats
    target_entropy: Tensor  # scalar, float32, nats, detached; log K means a uniform target


class RelationalLoss(nn.Module):
    """`relational_loss` with its temperatures, as a criterion.

    Args:
        tau_s: temperature of the student; the paper's is 0.1.
        tau_t: temperature of the teacher; the paper's for ImageNet is 0.04.

    Examples:
        >>> criterion = RelationalLoss(tau_s=0.1, tau_t=0.04)
        >>> loss, target_entropy = criterion(z_s, z_t, queue.rows)
    """

    def __init__(self, tau_s: float = 0.1, tau_t: float = 0.04) -> None:
        super().__init__()
        _check_temperatures(tau_s, tau_t)
        self.tau_s, self.tau_t = tau_s, tau_t

    def forward(self, student: Tensor, teacher: Tensor, queue: Tensor) -> Relation:
        """student (N, D) or (V, N, D), teacher (N, D), queue (K, D)."""
        return relational_loss(student, teacher, queue, self.tau_s, self.tau_t)

    def extra_repr(self) -> str:
        return f"tau_s={self.tau_s}, tau_t={self.tau_t}"


def relational_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, tau_s: float, tau_t: float
) -> Relation:
    """Cross-entropy of the student's relation to the queue against the teacher's (Eq. 3-5).

    Exact: no approximation, float32 arithmetic whatever autocast, the inputs' dtype or the global
    float32 precision settings say. Rows need not be normalised, though the method's are.

    Memory: the queue is read in chunks, and of size N x K nothing is held, unless K <= 512: the
    relations of so few rows, (V + 1) x N x K, are held as they are while the loss is computed.

    Args:
        student: (N, D), or (V, N, D) for V contrastive views that share the target; the loss is
            the mean over views and images. The only input that receives a gradient.
        teacher: (N, D), embeddings of the weak view.
        queue: (K, D), past teacher embeddings.
        tau_s: temperature of the student.
        tau_t: temperature of the teacher.

    Returns:
        the loss and the mean entropy of the target relation.

    Raises:
        UserError: shapes that do not fit, an empty queue, temperatures not above zero.
        NotImplementedError: in a backward pass with create_graph=True; there is no second
            derivative.
    """
    check_rows("relational loss", student, teacher, queue)
    _check_temperatures(tau_s, tau_t)
    return Relation(*_Relational.apply(student, teacher, queue, tau_s, tau_t))


class _Relational(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student, teacher, queue, tau_s, tau_t):
        loss, entropy, gradient = _relate(student, teacher, queue, tau_s, tau_t)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        ctx.mark_non_differentiable(entropy)
        return loss, entropy

    @staticmethod
    def backward(ctx, grad_loss, _):
        refuse_second_derivative("relational loss")
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.dtype), None, None, None, None


# An operator of its own, so that torch.compile keeps it whole instead of unrolling the chunks.
@torch.library.custom_op("ressl_plugin::relate", mutates_args=())
def _relate(
    student: Tensor, teacher: Tensor, queue: Tensor, tau_s: float, tau_t: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss (), target entropy (), gradient by the student: its shape, float32."""
    with torch.autocast(student.device.type, enabled=False), float32_products():
        n, views = len(teacher), student.reshape(-1, *teacher.shape)  # [V, N, D]
        rows = torch.cat([teacher.float() / tau_t, views.flatten(0, 1).float() / tau_s])
        if len(queue) <= _FEW_ROWS:
            cross_entropies, gradient = _whole(rows, n, queue)
        else:
            cross_entropies, gradient = _streamed(rows, n, queue)
        # d/dz = 1/tau_s d/d(z/tau_s), and the mean over views and images
        gradient = gradient.div_(tau_s * len(views) * n)
        entropy, loss = cross_entropies[0].mean(), cross_entropies[1:].mean()
        return loss, entropy, gradient.view(student.shape)


@_relate.register_fake
def _(student, teacher, queue, tau_s, tau_t):
    scalar = student.new_empty((), dtype=torch.float32)
    gradient = student.new_empty(student.shape, dtype=torch.float32)
    return scalar, torch.empty_like(scalar), gradient


# Of both: (1 + V, N) cross-entropies against the target, its own first; the students' gradients.


def _whole(rows: Tensor, n: int, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Of a queue of few rows, by the formula. Its relations can be so sharp that the loss is nearly
    zero, where a difference of log-sum-exp and mean score would lose its digits."""
    queue = queue.float()
    log_relations = torch.log_softmax(rows @ queue.T, dim=1).view(-1, n, len(queue))
    relations = log_relations.exp()
    cross_entropies = -torch.linalg.vecdot(log_relations, relations[0])
    return cross_entropies, (relations[1:] - relations[0]) @ queue


def _streamed(rows: Tensor, n: int, queue: Tensor) -> tuple[Tensor, Tensor]:
    """From the reads and log-sum-exps of one pass over the queue."""
    reads, log_sums = read(rows, queue)
    reads, log_sums = reads.view(-1, n, rows.shape[1]), log_sums.view(-1, n)
    cross_entropies = log_sums - torch.linalg.vecdot(rows.view_as(reads), reads[0])
    return cross_entropies, reads[1:] - reads[0]


def _check_temperatures(tau_s: float, tau_t: float) -> None:
    if not (0 < tau_s < math.inf and 0 < tau_t < math.inf):
        raise UserError(
            f"temperatures must be above 0 and finite; got tau_s {tau_s}, tau_t {tau_t}"
        )
