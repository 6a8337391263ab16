import pytest
import torch
from torch.nn import functional as F

from ressl_plugin.method import attention
from ressl_plugin.utils.precision import float32_products

PASSES = [attention._by_kernel, lambda rows, queue: attention._by_chunks(rows, queue, 100)]
passes = pytest.mark.parametrize("read", PASSES, ids=["kernel", "chunks"])


def inputs(r, k, d, tau=0.04, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows, queue = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for n in (r, k))
    return rows / tau, queue


def check(read, rows, queue, tolerance=1e-5):
    scores = rows.double() @ queue.double().T
    mean, log_sum = read(rows, queue)
    want = scores.softmax(1) @ queue.double()
    assert mean.dtype == log_sum.dtype == torch.float32
    assert (mean - want).norm() <= tolerance * want.norm()
    torch.testing.assert_close(log_sum.double(), scores.logsumexp(1), rtol=tolerance, atol=1e-6)


@passes
@pytest.mark.parametrize("r, k, d", [(1, 1, 1), (3, 513, 5), (128, 4097, 128), (400, 1000, 512)])
def test_equals_the_float64_formula(read, r, k, d):
    check(read, *inputs(r, k, d))


@passes
def test_rows_and_queue_need_not_lie_row_by_row(read):
    rows, queue = inputs(128, 700, 16)
    check(read, rows, queue.T.contiguous().T)  # MoCo's queue is (D, K)
    check(read, rows.T.contiguous().T, queue)


@passes
@pytest.mark.parametrize("factor", [1e-6, 1.0, 30.0, -30.0])
def test_scores_of_any_size(read, factor):
    rows, queue = inputs(64, 900, 16, tau=0.01)
    # A score carries a rounding error of its own size times 1e-7, whatever is done to it.
    check(read, rows, queue * factor, tolerance=max(1e-5, 1e-5 * abs(factor)))
    check(read, rows.abs(), queue.abs() * factor, tolerance=max(1e-5, 1e-5 * abs(factor)))


@passes
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["rows", "queue"])
def test_what_is_not_finite_shows(read, poison, where):
    rows, queue = inputs(64, 900, 16)
    (rows if where == "rows" else queue)[5, 3] = poison
    mean, log_sum = read(rows, queue)
    assert not mean[5].isfinite().all() and not log_sum[5].isfinite()


def test_the_kernel_is_used_where_it_has_work_for_every_thread(monkeypatch):
    used = []
    for name in ("_by_kernel", "_by_chunks"):
        call = getattr(attention, name)
        spy = lambda *args, call=call, name=name: used.append((name, args[2:])) or call(*args)
        monkeypatch.setattr(attention, name, spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    rows, queue = inputs(128, 700, 8)
    attention.read(rows, queue)
    attention.read(rows[:127], queue)  # one thread would wait
    attention.read(rows, queue.double())
    monkeypatch.setattr(attention, "_CHUNK", 5)
    attention.read(rows, queue.double())
    ours = ("_by_chunks", (8192,))
    assert used == [("_by_kernel", ()), ours, ours, ("_by_chunks", (5,))]


@passes
def test_holds_nothing_of_size_n_by_k(read):
    rows, queue = inputs(128, 8192, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        read(rows, queue)
    held = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert 0 < held < len(rows) * len(queue)  # a quarter of the bytes of one N x K


@passes
@pytest.mark.parametrize("precision", ["medium", "high"])
def test_full_float32_products_whatever_the_setting(read, precision):
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with float32_products():
            check(read, *inputs(128, 4096, 64))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
def test_the_older_interface_can_be_asked_within(precision):
    """torch.compile does where it lowers a batched product, and must hear no contradiction."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with float32_products():
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cuda.matmul.allow_tf32 is False
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_precisions_set_one_by_one_come_back():
    settings = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]
    before = torch.get_float32_matmul_precision()
    try:
        for setting, precision in zip(settings, ("tf32", "bf16")):
            setting.fp32_precision = precision
        with float32_products():
            assert [setting.fp32_precision for setting in settings] == ["ieee", "ieee"]
        assert [setting.fp32_precision for setting in settings] == ["tf32", "bf16"]
    finally:
        torch.set_float32_matmul_precision(before)  # sets those as well
