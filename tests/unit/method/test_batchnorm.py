from copy import deepcopy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from ressl_plugin.method import batchnorm
from ressl_plugin.method.batchnorm import GroupBatchNorm2d, to_groups
from ressl_plugin.utils.errors import UserError

SHAPES = {1: (16, 5), 2: (16, 5, 3, 4), 3: (16, 5, 2, 3, 2)}


def plain(dim=2, dtype=torch.float64, **options):
    layer = getattr(nn, f"BatchNorm{dim}d")(5, **options).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
            if tensor is not None:
                tensor.copy_(torch.rand(5, generator=generator) + 0.5)
    return layer


def batch(shape, dtype=torch.float64, seed=1):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (3 * x + 2).to(dtype)


def loop(layer, x, groups):
    """One plain layer a group, each from the same start; running statistics averaged after."""
    layers = [deepcopy(layer) for _ in range(groups)]
    y = torch.cat([copy(part) for copy, part in zip(layers, x.tensor_split(groups))])
    averages = {
        key: torch.stack([copy.state_dict()[key].double() for copy in layers]).mean(0)
        for key in layer.state_dict()
        if "running" in key
    }
    grads = lambda: [
        sum(copy.get_parameter(n).grad for copy in layers) for n, _ in layer.named_parameters()
    ]
    return y, averages, grads


def compare(layer, x, groups, steps=1, run=lambda layer, x: layer(x)):
    grouped = to_groups(deepcopy(layer), groups)
    for step in range(steps):
        x, x2 = (t.detach().clone().requires_grad_() for t in (x, x))
        x2.data.copy_(x)
        weights = torch.linspace(-1, 2, x.numel(), dtype=x.dtype).view_as(x)
        expected, averages, grads = loop(layer, x, groups)
        (expected * weights).sum().backward()
        grouped.zero_grad()
        actual = run(grouped, x2)
        (actual * weights).sum().backward()
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(x2.grad, x.grad)
        for parameter, grad in zip(grouped.parameters(), grads()):
            torch.testing.assert_close(parameter.grad, grad)
        for key, average in averages.items():
            torch.testing.assert_close(grouped.state_dict()[key], average)
        layer.load_state_dict(grouped.state_dict())
        x = x.detach() * 1.5 + step
    return grouped


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 8, 3, 7])  # the last two do not divide the batch
def test_is_a_loop_over_groups(dim, groups):
    compare(plain(dim), batch(SHAPES[dim]), groups)


def test_sequences():
    compare(plain(1), batch((9, 5, 4)), 3)


@pytest.mark.parametrize(
    "options", [{"momentum": None}, {"momentum": 0.3}, {"affine": False},
                {"track_running_stats": False}, {"eps": 0.5}]
)  # fmt: skip
def test_options_of_the_layer(options):
    grouped = compare(plain(**options), batch(SHAPES[2]), 4, steps=3)
    if options.get("track_running_stats", True):
        assert grouped.num_batches_tracked == 3
    else:
        assert grouped.running_mean is None and grouped(batch(SHAPES[2])).shape == SHAPES[2]


@pytest.mark.parametrize(
    ("options", "groups"), [({}, 4), ({}, 3), ({"affine": False}, 3), ({"momentum": None}, 4)]
)
def test_the_traced_formula(options, groups):
    run = lambda layer, x: torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    compare(plain(**options), batch(SHAPES[2]), groups, run=run)


@pytest.fixture
def on_a_gpu(monkeypatch):
    """The layers compute on the processor what they would compute on a GPU."""
    monkeypatch.setattr(batchnorm._GroupBatchNorm, "apply", batchnorm._folded)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}])
def test_one_batch_norm_over_folded_groups(on_a_gpu, dim, options):
    for groups in (1, 2, 8):
        compare(plain(dim, **options), batch(SHAPES[dim]), groups, steps=2)
    compare(plain(1), batch((9, 5, 4)), 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_folded_groups_keep_memory_format_and_type(dtype, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = batch((16, 5, 3, 4), dtype).contiguous(memory_format=layout)
    layer = plain(dtype=torch.float32)
    given = layer.weight, layer.bias, 4, layer.eps
    wanted = batchnorm._GroupBatchNorm.apply(x, *given)
    found = batchnorm._folded(x, *given)
    assert found[0].dtype == dtype and found[0].is_contiguous(memory_format=layout)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs)


def test_uneven_groups_and_other_devices():
    """On meta tensors, which are no processor's; groups of two sizes cannot be folded."""
    for n in (16, 15):
        layer = to_groups(plain(), 4).to("meta")
        x = torch.empty(n, 5, 3, 4, dtype=torch.float64, device="meta", requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == x.shape


def test_evaluation_is_plain():
    layer, x = plain().eval(), batch(SHAPES[2])
    torch.testing.assert_close(to_groups(deepcopy(layer), 4)(x), layer(x), rtol=0, atol=0)
    to_groups(deepcopy(layer), 4)(x[:1])  # of any size


def test_statistics_move_without_gradients_too():
    layer = to_groups(plain(), 4)
    before = layer.running_mean.clone()
    with torch.no_grad():
        layer(batch(SHAPES[2]))
    assert not torch.equal(before, layer.running_mean) and layer.num_batches_tracked == 1
    assert not layer.running_mean.requires_grad


def test_two_ranks_are_one_process_with_twice_the_groups():
    x, one, ranks = batch((24, 5, 3, 3)), to_groups(plain(), 6), to_groups(plain(), 3)
    first, second = deepcopy(ranks), deepcopy(ranks)
    both = torch.cat([first(x[:12]), second(x[12:])])
    torch.testing.assert_close(one(x), both, rtol=0, atol=0)
    torch.testing.assert_close(one.running_var, (first.running_var + second.running_var) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("params", ["float", "half", None])
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_keeps_float32_statistics(dtype, params, channels_last):
    layer = plain(dtype=torch.float32, affine=params is not None)
    reference = deepcopy(layer).double()
    if params == "half":
        layer = layer.to(dtype)
        reference = deepcopy(layer).double()
    x = batch((16, 5, 8, 8), dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    x.requires_grad_()
    y = to_groups(layer, 4)(x)
    expected, averages, _ = loop(reference, x.detach().double(), 4)
    eps = torch.finfo(dtype).eps
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), expected, rtol=2 * eps, atol=2 * eps)
    tolerance = 1e-4 if params != "half" else 2 * eps
    torch.testing.assert_close(
        layer.running_var.double(), averages["running_var"], rtol=tolerance, atol=tolerance
    )
    y.square().sum().backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()
    assert params is None or layer.weight.grad.dtype == layer.weight.dtype


def test_channels_last_is_kept():
    x = batch((8, 5, 4, 4)).to(memory_format=torch.channels_last).requires_grad_()
    layer = to_groups(plain(), 2)
    y = layer(x)
    y.backward(torch.randn(8, 5, 4, 4, dtype=x.dtype))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
    compare(plain(), x.detach(), 2)


def test_any_strides():
    compare(plain(), batch((8, 3, 4, 5)).permute(0, 3, 1, 2)[:, :, ::2], 2)


def test_a_layer_of_ones_own_is_a_converted_one():
    layer = batchnorm.GroupBatchNorm2d(4, momentum=0.3, groups=2).double()
    converted = batchnorm.to_groups(nn.BatchNorm2d(4, momentum=0.3), 2).double()
    x = batch((6, 4, 3, 3))
    assert type(layer) is type(converted) and torch.equal(layer(x), converted(x))
    assert torch.equal(layer.running_var, converted.running_var) and "groups=2" in repr(layer)
    with pytest.raises(UserError, match="at least 1"):
        batchnorm.GroupBatchNorm1d(4, groups=0)


def network():
    nested = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nested)


def test_the_layers_stay_the_same_objects():
    net = network()
    before = deepcopy(net.state_dict())
    addresses = [p.data_ptr() for p in (*net.parameters(), *net.buffers())]
    assert to_groups(net, 4) is net and isinstance(net[1], GroupBatchNorm2d)
    assert isinstance(net[1], nn.BatchNorm2d) and net[1].groups == net[3][1].groups == 4
    assert list(net.state_dict()) == list(before)
    copy = deepcopy(net)
    assert isinstance(copy[1], GroupBatchNorm2d) and copy[1].groups == 4
    assert to_groups(net, 2)[1].groups == 2 and "groups=2" in repr(net)
    assert [p.data_ptr() for p in (*net.parameters(), *net.buffers())] == addresses
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])


def test_batch_norm_with_activation_of_timm():
    layer = BatchNormAct2d(5).double()
    before, x = deepcopy(layer), batch(SHAPES[2])
    expected = loop(layer, x, 4)[0]
    assert expected.min() == 0
    to_groups(layer, 4)
    torch.testing.assert_close(deepcopy(layer)(x), expected)
    torch.testing.assert_close(layer.eval()(x), before.eval()(x))


def test_says_what_is_wrong():
    layer = to_groups(plain(), 4)
    with pytest.raises(UserError, match=r"batch of 7 .* 4 groups; at least 8"):
        layer(batch((7, 5, 3, 3)))
    with pytest.raises(ValueError, match="4D"):
        layer(batch((8, 5)))
    with pytest.raises(UserError, match="at least 1"):
        to_groups(network(), 0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.SyncBatchNorm(3))
    with pytest.raises(UserError, match="'1' is a SyncBatchNorm"):
        to_groups(net, 2)
    assert type(net[0]) is nn.BatchNorm2d
