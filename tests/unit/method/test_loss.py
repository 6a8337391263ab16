import contextlib

import pytest
import torch
from torch.nn import functional as F

from ressl_plugin.method import attention
from ressl_plugin.method import loss as loss_module
from ressl_plugin.method.infonce import info_nce
from ressl_plugin.method.loss import RelationalLoss, relational_loss
from ressl_plugin.utils.errors import UserError


def unit(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(dtype)


def reference(student, teacher, queue, tau_s, tau_t):
    """Eq. 3-5 as they stand, in float64: loss, entropy of the target, gradient by the student."""
    student = student.detach().double().requires_grad_()
    target = F.softmax(teacher.double() @ queue.double().T / tau_t, dim=-1)
    relation = F.log_softmax(student @ queue.double().T / tau_s, dim=-1)
    loss = -(target * relation).sum(-1).mean()
    loss.backward()
    entropy = -torch.special.xlogy(target, target).sum(-1).mean()
    return loss.detach(), entropy, student.grad


def error(actual, expected, floor=0.1):
    # One queue row leaves a loss and a gradient of exactly zero: the error is absolute below floor.
    return float((actual.double() - expected).norm() / expected.norm().clamp(min=floor))


@contextlib.contextmanager
def in_chunks(rows):
    """Longer queues are read by our own pass, so many rows at a time; None leaves it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        if rows:
            patch.setattr(loss_module, "_FEW_ROWS", min(rows, loss_module._FEW_ROWS))
            patch.setattr(attention, "_CHUNK", rows)
            patch.setattr(attention, "_kernel_fits", lambda *_: False)
        yield


def compare(student, teacher, queue, tau_s=0.1, tau_t=0.04, tolerance=1e-5, chunk=None):
    student = student.clone().requires_grad_()
    with in_chunks(chunk):
        loss, entropy = relational_loss(student, teacher, queue, tau_s, tau_t)
    loss.backward()
    expected = reference(student, teacher, queue, tau_s, tau_t)
    assert error(loss.detach(), expected[0]) <= tolerance
    assert error(entropy, expected[1], floor=1.0) <= tolerance
    assert error(student.grad, expected[2]) <= tolerance
    assert loss.dtype == entropy.dtype == torch.float32 and not entropy.requires_grad


@pytest.mark.parametrize(
    "n, k, d",
    [(1, 1, 4), (1, 2, 8), (3, 7, 8), (2, 4097, 16), (128, 4096, 99), (5, 1000, 1), (2, 65536, 32)],
)
@pytest.mark.parametrize("chunk", [None, 41, 2048])
def test_equals_the_float64_formula(n, k, d, chunk):
    compare(unit(n, d, seed=1), unit(n, d, seed=2), unit(k, d, seed=3), chunk=chunk)


@pytest.mark.parametrize("chunk", [1, 3, 16, 64, 65, 1000])
@pytest.mark.parametrize("tau_t", [0.04, 1e-2])
def test_any_chunk(chunk, tau_t):
    student, teacher, queue = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(65, 8, seed=3)
    compare(student, teacher, queue, tau_t=tau_t, chunk=chunk)


@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_share_the_target(views):
    student, teacher, queue = unit(views, 6, 16, seed=1), unit(6, 16, seed=2), unit(300, 16, seed=3)
    compare(student, teacher, queue, chunk=128)
    whole = relational_loss(student, teacher, queue, 0.1, 0.04).loss
    each = torch.stack([relational_loss(s, teacher, queue, 0.1, 0.04).loss for s in student])
    torch.testing.assert_close(whole, each.mean())


@pytest.mark.parametrize("tau_s, tau_t", [(1e-3, 1e-3), (0.1, 1e-3), (1.0, 0.5), (100.0, 1e-3)])
@pytest.mark.parametrize("kind", ["random", "alike", "opposite", "long", "short"])
@pytest.mark.parametrize("chunk", [5, 50])
def test_extreme_temperatures_and_rows(tau_s, tau_t, kind, chunk):
    student, teacher, queue = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(50, 8, seed=3)
    if kind == "alike":
        queue = queue[:1].expand(50, 8).contiguous()
    if kind == "opposite":
        teacher, queue = -student, student.repeat(3, 1)
    if kind == "long":  # rows that are not normalised, scores far beyond 1/tau
        queue = queue * 30
    if kind == "short":
        student, queue = student * 1e-4, queue * 1e-4
    # A score of s / tau carries a rounding error of about s / tau * 1e-7, whatever is done to it.
    scale = 30.0 if kind == "long" else 1.0
    compare(student, teacher, queue, tau_s, tau_t, max(1e-5, 1e-6 * scale / tau_t), chunk=chunk)


def test_long_rows_at_ordinary_temperatures():
    student, teacher, queue = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(90, 8, seed=3)
    for factor in (10.0, -10.0):  # exponentials that overflow, and that vanish
        queue = factor * queue.abs()
        compare(student, teacher, queue, tolerance=1e-4, chunk=40)
        compare(student.abs(), teacher.abs(), queue, tolerance=1e-4, chunk=40)


def test_identical_student_and_teacher_have_no_gradient():
    z, queue = unit(4, 8, seed=1).requires_grad_(), unit(50, 8, seed=3)
    loss, entropy = relational_loss(z, z, queue, 0.1, 0.1)
    loss.backward()
    assert z.grad.abs().max() < 1e-5 and abs(loss - entropy) < 1e-5


def test_only_the_student_gets_a_gradient():
    student, teacher, queue = (unit(4, 8, seed=s).requires_grad_() for s in range(3))
    loss = relational_loss(student, teacher, queue, 0.1, 0.04).loss
    (3 * loss).backward()
    expected = reference(student, teacher.detach(), queue.detach(), 0.1, 0.04)[2]
    assert error(student.grad, 3 * expected) < 1e-5
    assert teacher.grad is None and queue.grad is None


def test_without_gradient():
    rows = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(50, 8, seed=3)
    for chunk in (16, 64):
        with in_chunks(chunk):
            loss = relational_loss(*rows, 0.1, 0.04).loss
        assert not loss.requires_grad
        assert error(loss, reference(*rows, 0.1, 0.04)[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_inputs_and_autocast_compute_in_float32(dtype, autocast):
    student, teacher, queue = (
        unit(*s, seed=i, dtype=dtype) for i, s in enumerate([(4, 64), (4, 64), (500, 64)])
    )
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), in_chunks(128):
        loss, entropy = relational_loss(student, teacher, queue, 0.1, 0.04)
    loss.backward()
    expected = reference(student, teacher, queue, 0.1, 0.04)
    assert loss.dtype == torch.float32 and student.grad.dtype == dtype
    assert error(loss.detach(), expected[0]) < 1e-5 and error(entropy, expected[1]) < 1e-5
    assert error(student.grad, expected[2]) < torch.finfo(dtype).eps


def test_float32_under_autocast_and_any_global_precision():
    before = torch.get_float32_matmul_precision()
    rows = unit(32, 64, seed=1), unit(32, 64, seed=2), unit(4096, 64, seed=3)
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            compare(*rows)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_holds_nothing_of_size_n_by_k():
    n, k = 64, 4096
    student, teacher, queue = unit(n, 8, seed=1).requires_grad_(), unit(n, 8), unit(k, 8)
    with in_chunks(64), torch.profiler.profile(profile_memory=True) as profile:
        relational_loss(student, teacher, queue, 0.1, 0.04).loss.backward()
    largest = max(
        event.self_device_memory_usage or event.self_cpu_memory_usage for event in profile.events()
    )
    assert 2 * n * 64 * 4 <= largest < n * k  # the scores of one chunk, a quarter of N x K bytes


def test_gradcheck_by_differences():
    student, teacher, queue = unit(3, 6, seed=1), unit(3, 6, seed=2), unit(20, 6, seed=3)
    step = 1e-2 * torch.randn(3, 6, generator=torch.Generator().manual_seed(4))
    z = student.clone().requires_grad_()
    relational_loss(z, teacher, queue, 0.5, 0.2).loss.backward()
    up, down = (relational_loss(student + s * step, teacher, queue, 0.5, 0.2).loss for s in (1, -1))
    torch.testing.assert_close((z.grad * step).sum(), (up - down) / 2, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("loss", ["relational", "InfoNCE"])
@pytest.mark.parametrize("weighted", [False, True])  # by something that needs a gradient
def test_a_second_derivative_is_refused(loss, weighted):
    """It would be zero, and a gradient penalty without effect."""
    student, teacher, queue = unit(3, 6, seed=1).requires_grad_(), unit(3, 6), unit(20, 6)
    weight = torch.ones((), requires_grad=weighted)
    if loss == "relational":
        value = relational_loss(student, teacher, queue, 0.1, 0.04).loss * weight
    else:
        value = info_nce(student, teacher, queue, 0.1) * weight
    with pytest.raises(NotImplementedError, match=f"{loss}.*no second derivative"):
        torch.autograd.grad(value, student, create_graph=True)
    (gradient,) = torch.autograd.grad(value, student)
    assert gradient.abs().sum() > 0


def test_compiles_into_one_graph():
    def step(student, teacher, queue):
        return relational_loss(2 * student, teacher, queue, 0.1, 0.04)

    student, teacher, queue = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(50, 8, seed=3)
    gradients = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        z = student.clone().requires_grad_()
        run(z, teacher, queue).loss.backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (((4, 8), (3, 8), (9, 8)), {}, "expected"),
        (((4, 8), (4, 8), (9, 7)), {}, "expected"),
        (((8,), (4, 8), (9, 8)), {}, "expected"),
        (((4, 8), (4, 8), (0, 8)), {}, "none empty"),
        (((4, 8), (4, 8), (9, 8)), {"tau_t": 0.0}, "temperatures"),
        (((4, 8), (4, 8), (9, 8)), {"tau_s": -1.0}, "temperatures"),
        (((4, 8), (4, 8), (9, 8)), {"tau_t": float("inf")}, "temperatures"),
    ],
)
def test_says_what_is_wrong(shapes, options, message):
    rows, options = [torch.ones(shape) for shape in shapes], {"tau_s": 0.1, "tau_t": 0.04} | options
    with pytest.raises(UserError, match=message):
        relational_loss(*rows, **options)


def test_the_criterion():
    rows = unit(4, 8, seed=1), unit(4, 8, seed=2), unit(50, 8, seed=3)
    criterion = RelationalLoss(tau_s=0.2, tau_t=0.05)
    for found, want in zip(criterion(*rows), relational_loss(*rows, 0.2, 0.05)):
        assert torch.equal(found, want)
    assert repr(criterion) == "RelationalLoss(tau_s=0.2, tau_t=0.05)" and not criterion.state_dict()
    with pytest.raises(UserError, match="temperatures"):
        RelationalLoss(tau_t=0)
