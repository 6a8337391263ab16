import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ressl_plugin.method.queue import FeatureQueue
from ressl_plugin.utils.errors import UserError


def make(size, dim=3):
    rows = FeatureQueue.random_rows(size, dim, torch.Generator().manual_seed(0))
    return FeatureQueue(rows, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_order_is_that_of_a_list(size):
    queue = make(size)
    oldest_first = list(queue.rows.clone())
    generator = torch.Generator().manual_seed(size)
    for _ in range(40):
        n = int(torch.randint(0, 2 * size + 3, (1,), generator=generator))
        keys = torch.randn(n, 3, generator=generator)
        queue.enqueue(keys)
        oldest_first = (oldest_first + list(keys))[-size:]
        ring = torch.roll(queue.rows, -int(queue.ptr), dims=0)
        torch.testing.assert_close(ring, torch.stack(oldest_first), rtol=0, atol=0)


def test_wraps_around_in_place():
    queue = make(5)
    rows, ptr, first = queue.rows, queue.ptr, queue.rows[1:3].clone()
    address = rows.data_ptr()
    queue.enqueue(torch.full((3, 3), 1.0))
    queue.enqueue(torch.full((3, 3), 2.0))
    assert queue.rows is rows and queue.ptr is ptr and rows.data_ptr() == address
    assert rows[:, 0].tolist() == [2.0, 1.0, 1.0, 2.0, 2.0] and ptr.tolist() == [1]
    assert not torch.equal(rows[1:3], first)


def test_never_reads_a_number_back():
    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default, "a sync with the host"
            return func(*args, **(kwargs or {}))

    queue = make(5)
    with NoSync():
        with pytest.raises(AssertionError, match="sync"):
            queue.ptr.item()
        for n in (2, 4, 9):
            queue.enqueue(torch.ones(n, 3))


def test_random_rows_are_unit_and_repeatable():
    rows = [FeatureQueue.random_rows(50, 8, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    torch.testing.assert_close(rows[0].norm(dim=1), torch.ones(50))


def test_half_keys_and_keys_with_a_graph():
    queue = make(4)
    keys = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    queue.enqueue(keys)
    assert queue.rows.dtype == torch.float32 and not queue.rows.requires_grad
    assert queue.rows[:2].tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: FeatureQueue.random_rows(0, 8),
        lambda: FeatureQueue.random_rows(8, 0),
        lambda: FeatureQueue(torch.empty(0, 8), torch.zeros(1, dtype=torch.long)),
        lambda: FeatureQueue(torch.ones(4, 8), torch.zeros(1)),
        lambda: make(4).enqueue(torch.ones(2, 5)),
    ],
)
def test_what_cannot_be_a_queue(build):
    with pytest.raises(UserError, match="queue"):
        build()
