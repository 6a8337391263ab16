import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ressl_plugin.method.queue import FeatureQueue, random_rows
from ressl_plugin.utils.errors import UserError


def make(size, dim=3):
    return FeatureQueue(size, dim)


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
    rows = [random_rows(50, 8, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
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
        lambda: FeatureQueue(0, 8),
        lambda: FeatureQueue(8, 0),
        lambda: random_rows(8, 0),
        lambda: make(4).enqueue(torch.ones(2, 5)),
    ],
)
def test_what_cannot_be_a_queue(build):
    with pytest.raises(UserError, match="queue"):
        build()


def test_it_goes_on_from_its_state_dict():
    queue, again = make(5), FeatureQueue(5, 3, seed=1)
    queue.enqueue(torch.ones(2, 3))
    assert not torch.equal(again.rows, queue.rows)
    assert queue.state_dict().keys() == {"rows", "ptr"}
    again.load_state_dict(queue.state_dict())
    for one in (queue, again):
        one.enqueue(torch.full((4, 3), 2.0))
    assert torch.equal(again.rows, queue.rows) and again.ptr.tolist() == [1]


def test_it_moves_with_its_module():
    """To the meta device, which every machine has; the pointer stays a whole number."""
    model = torch.nn.ModuleDict({"queue": make(5)}).to("meta", torch.float16)
    queue = model["queue"]
    assert {queue.rows.device.type, queue.ptr.device.type} == {"meta"}
    assert (queue.rows.dtype, queue.ptr.dtype) == (torch.float16, torch.long)
    queue.enqueue(torch.ones(2, 3, device="meta"))
    assert "size=5, dim=3, gather=True" in repr(queue) and not list(model.parameters())


def test_its_first_rows_are_its_own_seeds():
    torch.manual_seed(0)
    state, queue = torch.random.get_rng_state(), make(5)
    assert torch.equal(torch.random.get_rng_state(), state), "ranks may be seeded apart"
    torch.manual_seed(1)
    assert torch.equal(make(5).rows, queue.rows)
