"""InfoNCE against autograd in float64, and what a training step needs of it."""

import pytest
import torch
import torch.nn.functional as F

from ressl_plugin.method.infonce import info_nce
from ressl_plugin.utils.errors import UserError


def rows(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def reference(student, teacher, queue, tau):
    """Cross-entropy with the positive as class 0, by autograd in float64."""
    z = student.double().detach().requires_grad_()
    t, q = teacher.double(), queue.double()
    flat, keys = z.reshape(-1, z.shape[-1]), t.expand(z.shape).reshape(-1, z.shape[-1])
    logits = torch.cat([(flat * keys).sum(1, keepdim=True), flat @ q.T], dim=1) / tau
    loss = F.cross_entropy(logits, torch.zeros(len(flat), dtype=torch.long))
    loss.backward()
    return loss.detach(), z.grad


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


@pytest.mark.parametrize("n,k,d,views", [(1, 1, 4, None), (8, 40, 16, None), (6, 5000, 8, 3)])
@pytest.mark.parametrize("tau", [0.2, 0.02])
def test_loss_and_gradient(n, k, d, views, tau):
    student = rows(*((views, n, d) if views else (n, d))).requires_grad_()
    teacher, queue = rows(n, d, seed=1), rows(k, d, seed=2)
    loss = info_nce(student, teacher, queue, tau)
    (3 * loss).backward()
    want, gradient = reference(student, teacher, queue, tau)
    assert loss.dtype == torch.float32
    assert relative(loss.detach(), want) < 1e-5
    assert relative(student.grad / 3, gradient) < 1e-5


@pytest.mark.parametrize("n", [4, 200])  # few rows are read in chunks, many by PyTorch's kernel
def test_large_memory(n):
    student, teacher, queue = rows(n, 8).requires_grad_(), rows(n, 8, seed=1), rows(9000, 8, seed=2)
    info_nce(student, teacher, queue, 0.1).backward()
    assert relative(student.grad, reference(student, teacher, queue, 0.1)[1]) < 1e-5


def test_memory_may_change_before_backward():
    student, teacher, queue = (
        rows(8, 16).requires_grad_(),
        rows(8, 16, seed=1),
        rows(64, 16, seed=2),
    )
    _, want = reference(student, teacher, queue, 0.2)
    loss = info_nce(student, teacher, queue, 0.2)
    queue[:8] = teacher  # what the FIFO does between forward and backward
    loss.backward()
    assert relative(student.grad, want) < 1e-5


def test_float32_under_autocast():
    student, teacher, queue = rows(8, 16), rows(8, 16, seed=1), rows(64, 16, seed=2)
    plain = info_nce(student, teacher, queue, 0.04)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(student, teacher, queue, 0.04)
    assert torch.equal(plain, mixed)
    half = student.bfloat16().requires_grad_()
    info_nce(half, teacher, queue, 0.04).backward()
    assert half.grad.dtype == torch.bfloat16


def test_only_the_student_learns():
    student, teacher, queue = (t.requires_grad_() for t in (rows(4, 8), rows(4, 8), rows(9, 8)))
    info_nce(student, teacher, queue, 0.2).backward()
    assert student.grad is not None
    assert teacher.grad is None and queue.grad is None


@pytest.mark.parametrize("shapes", [((4, 8), (5, 8), (9, 8)), ((4, 8), (4, 8), (9, 7))])
def test_shapes_that_do_not_fit(shapes):
    with pytest.raises(UserError, match="InfoNCE"):
        info_nce(*(rows(*shape) for shape in shapes), 0.2)


def test_temperature():
    with pytest.raises(UserError, match="temperature"):
        info_nce(rows(4, 8), rows(4, 8), rows(9, 8), 0.0)
