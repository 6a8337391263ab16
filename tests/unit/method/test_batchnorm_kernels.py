"""The kernels of group batch norm without a GPU: interpreted, beside float64, and compiled.

Run as a script this file interprets its cases: Triton decides for a whole process.
"""

import json
import os
import subprocess
import sys
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ressl_plugin.method import batchnorm
from ressl_plugin.method.batchnorm import GroupBatchNorm2d, to_groups

pytest.importorskip("triton")
from ressl_plugin.method import batchnorm_kernels

TINY = {"_TILE": 128, "_COLUMNS": (8, 2), "_PROGRAMS": 8}  # several tiles, chunks and blocks
WIDE = {"_TILE": 2**14, "_COLUMNS": (2048, 2048), "_PROGRAMS": 8, "_WIDTH": 2048}  # few programs
AS_IS = {"_TILE": 2048}
CASES = {
    "even": {"shape": (8, 3, 7, 7), "groups": 2},
    "uneven": {"shape": (11, 3, 4, 5), "groups": 4},
    "channels_last": {"shape": (7, 12, 7, 5), "groups": 3, "layout": "channels_last"},
    "as on a GPU": {"shape": (6, 70, 4, 4), "groups": 2, "layout": "channels_last", "sizes": AS_IS},
    "3d": {"shape": (4, 6, 2, 3, 4), "groups": 2, "layout": "channels_last_3d"},
    "head": {"shape": (9, 20), "groups": 2},
    "one group": {"shape": (5, 3, 3), "groups": 1},
    "far from zero": {"shape": (8, 2, 8, 8), "groups": 2, "shift": 20.0},
    "strided": {"shape": (4, 3, 4, 4), "groups": 2, "layout": "permuted"},
    "no parameters": {"shape": (4, 2, 3, 3), "groups": 2, "options": {"affine": False}},
    "cumulative": {"shape": (4, 2, 3, 3), "groups": 2, "options": {"momentum": None}, "steps": 2},
    "untracked": {"shape": (4, 2, 3, 3), "groups": 2, "options": {"track_running_stats": False}},
    "compiled": {"shape": (4, 2, 4, 4), "groups": 2, "layout": "channels_last", "compiled": True},
    "bfloat16": {"shape": (9, 3, 4, 4), "groups": 2, "dtype": "bfloat16"},
    "float16": {"shape": (9, 3, 4, 4), "groups": 2, "dtype": "float16"},
    "half parameters": {"shape": (4, 2, 4, 4), "groups": 2, "dtype": "bfloat16", "half": True},
}


def channels_of_resnets():
    """(channels, width) of every batch norm of a ResNet-18 and 50 with the paper's stem."""
    from torchvision.models import resnet18, resnet50  # seconds, which `interpret` need not wait

    found = set()
    for make in (resnet18, resnet50):
        with torch.device("meta"):
            network = make()
            network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1), nn.Identity()
            for layer in network.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.register_forward_pre_hook(lambda _, x: found.add(tuple(x[0].shape[1:3])))
            network(torch.empty(2, 3, 32, 32))
    return sorted(found)


def errors(shape, groups, layout=None, dtype="float32", shift=2.0, half=False, options=None,
           sizes=TINY, steps=1, compiled=False):  # fmt: skip
    """Largest differences from float64, as shares of the largest number; and what is broken."""
    torch.manual_seed(0)
    dtype = getattr(torch, dtype)
    kind = getattr(nn, f"BatchNorm{max(1, len(shape) - 2)}d")
    layer = to_groups(kind(shape[1], **(options or {})), groups)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 2)
    layer = layer.to(dtype) if half else layer
    run = layer
    if compiled:
        run = torch.compile(layer._by_kernels, backend="aot_eager", fullgraph=True)
    wanted = to_groups(kind(shape[1], **(options or {})), groups).double()
    wanted.load_state_dict(layer.state_dict())
    found = {}
    for step in range(steps):
        x = (torch.randn(shape) * (1 + step) + shift).to(dtype)
        if layout == "permuted":
            x = x.transpose(1, 3)[:, :, ::2].repeat_interleave(2, 2).transpose(1, 3)
        elif layout:
            x = x.to(memory_format=getattr(torch, layout))
        grad = torch.randn_like(x)
        layer.zero_grad(), wanted.zero_grad()
        x, x64 = x.requires_grad_(), x.detach().double().requires_grad_()
        here = mock.patch.object(batchnorm, "KERNEL_DEVICES", ("cpu",))
        with here, mock.patch.multiple(batchnorm_kernels, **sizes):
            y = run(x)
            y.backward(grad)
        y64 = plain(wanted, x64)
        y64.backward(grad.double())
        pairs = {"y": (y, y64), "x.grad": (x.grad, x64.grad)}
        assert y.dtype == x.grad.dtype == dtype
        if x.is_contiguous() or layout in ("channels_last", "channels_last_3d"):
            assert y.stride() == x.grad.stride() == x.stride()
        pairs |= {n: (p.grad, wanted.get_parameter(n).grad) for n, p in layer.named_parameters()}
        pairs |= {n: (b, wanted.get_buffer(n)) for n, b in layer.named_buffers()}
        for name, (a, b) in pairs.items():
            difference = (a.double() - b).abs().max() / b.abs().max()
            found[name] = max(found.get(name, 0.0), difference.item())
    return found


def plain(layer, x):
    """Every group by itself, in float64; the running statistics by their definition."""
    parts = x.tensor_split(layer.groups)
    y = [F.batch_norm(p, None, None, layer.weight, layer.bias, True, 0.0, layer.eps) for p in parts]
    if layer.running_mean is not None:
        layer.num_batches_tracked += 1
        step = layer.momentum or 1 / layer.num_batches_tracked.item()
        over = [d for d in range(x.dim()) if d != 1]
        mean = torch.stack([p.detach().mean(over) for p in parts]).mean(0)
        var = torch.stack([p.detach().var(over) for p in parts]).mean(0)
        layer.running_mean += step * (mean - layer.running_mean)
        layer.running_var += step * (var - layer.running_var)
    return torch.cat(y)


def interpret(cases):
    """`errors` of each of some cases, found by a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(cases),
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def judge(cases):
    for name, found in interpret(cases).items():
        case = cases[name]
        dtype = getattr(torch, case.get("dtype", "float32"))
        rounding = torch.finfo(dtype).eps if dtype != torch.float32 else 1e-5
        for of, difference in found.items():
            half = of in ("y", "x.grad") or case.get("half")
            assert difference <= (rounding if half else 1e-5), (name, of, difference)
        assert found.get("num_batches_tracked", 0) == 0


def test_interpreted_they_are_float64s():
    judge(CASES)


@pytest.mark.slow
def test_interpreted_on_every_layer_of_the_resnets():
    """Fewer images and pixels, all channels: the interpreter takes seconds for what takes none."""
    shapes = {(9, channels, min(4, width), min(4, width)) for channels, width in
              channels_of_resnets()}  # fmt: skip
    assert len({shape[1] for shape in shapes}) == 6
    judge({
        f"{shape} {layout} {dtype}": {"shape": shape, "groups": 4, "sizes": WIDE, "steps": 1,
                                      "layout": layout, "dtype": dtype}
        for shape in shapes for layout in (None, "channels_last")
        for dtype in ("float32", "bfloat16")
    })  # fmt: skip


def test_where_triton_cannot_start_pytorch_does_it(monkeypatch, caplog):
    """Here there is no driver; elsewhere a C compiler may be missing."""
    if torch.cuda.is_available():
        pytest.skip("a GPU, and Triton can start")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    batchnorm._triton_starts.cache_clear()
    assert not batchnorm._gpu_takes_kernels()
    assert "PyTorch's kernels, which are slower" in caplog.text
    batchnorm._triton_starts.cache_clear()


def test_a_compiled_network_keeps_the_kernels():
    """Inductor's own of the formula took more than a minute to compile on an H200."""
    graphs = []
    layer = GroupBatchNorm2d(8, groups=2).to("meta")
    compiled = torch.compile(layer, backend=lambda graph, _: graphs.append(graph) or graph)
    compiled(torch.empty(8, 8, 4, 4, device="meta"))
    (graph,) = graphs
    called = {str(node.target) for node in graph.graph.nodes}
    assert {"ressl_plugin.group_moments.default", "ressl_plugin.group_normalise.default"} <= called


TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64",
    int: "i32", float: "fp32",
}  # fmt: skip


@pytest.fixture
def launched(monkeypatch):
    """What was launched, (kernel, its arguments by name, options) each, and not run."""
    from triton.runtime.jit import JITFunction

    def keep(kernel, *args, grid, warmup, num_warps=4, **more):
        found.append((kernel, dict(zip(kernel.arg_names, args)) | more, {"num_warps": num_warps}))

    found = []
    monkeypatch.setattr(JITFunction, "run", keep)
    return found


@pytest.mark.parametrize("architecture, layout", [
    (80, "channels_last"), (90, "contiguous_format"), (100, "channels_last"),
])  # A100, H100, B200  # fmt: skip
def test_compile_for_gpus(launched, architecture, layout, tmp_path, monkeypatch):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    x = torch.empty(256, 64, 32, 32, dtype=torch.bfloat16, device="meta")
    moments = torch.empty(2, 8, 64, device="meta")
    x = x.to(memory_format=getattr(torch, layout))
    weight, count = moments[0, 0], torch.zeros((), dtype=torch.long, device="meta")
    batchnorm_kernels.statistics(x, weight, weight, count, 8, 0.1, 1e-5)
    batchnorm_kernels.normalise(x, moments, weight, weight, 8)
    batchnorm_kernels.gradients(x, x, moments, weight, 8)
    assert len(launched) == 5
    for kernel, given, options in launched:
        # as Triton itself does where a kernel is launched
        fixed = {k: v for k, v in given.items() if k.isupper() or (type(v) is int and v == 1)}
        types = {k: TYPES[getattr(v, "dtype", type(v))] for k, v in given.items()}
        source = ASTSource(kernel, types | dict.fromkeys(fixed, "constexpr"), fixed)
        made = triton.compile(source, GPUTarget("cuda", architecture, 32), options)
        assert f".target sm_{architecture}" in made.asm["ptx"] and made.asm["cubin"]


if __name__ == "__main__":
    json.dump({name: errors(**case) for name, case in json.load(sys.stdin).items()}, sys.stdout)
