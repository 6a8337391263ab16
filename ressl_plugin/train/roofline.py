"""The least time that each phase of a step can take on this machine: from FLOPs and bytes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from lightning.fabric.utilities.throughput import measure_flops

from ressl_plugin.utils.precision import float32_products

FLOAT = 4  # bytes of a float32, which parameters, queue and loss are kept in


@dataclass(frozen=True)
class Machine:
    """What one device sustains: floating point operations and bytes a second."""

    name: str
    flops: float  # matrix products in the training's precision (of float32 maybe TF32)
    flops32: float  # and in full float32, as the loss needs them
    bytes: float  # read and written, by copying

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.flops / 1e12:.2f} TFLOP/s "
            f"({self.flops32 / 1e12:.2f} in float32), {self.bytes / 1e9:.0f} GB/s"
        )


@dataclass(frozen=True)
class Floor:
    """Seconds, and the reason."""

    seconds: float
    what: str


def measure(device: torch.device, precision="32-true") -> Machine:
    """Throughput of matrix products and of copying, the best of a few trials each."""
    device = torch.device(device)
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads"
    dtype = {"16": torch.float16, "bf": torch.bfloat16}.get(str(precision)[:2], torch.float32)
    side, size = (8192, 1 << 28) if cuda else (1024, 1 << 25)
    flops = 2 * side**3 / _product(device, dtype, side)
    with float32_products():
        flops32 = 2 * side**3 / _product(device, torch.float32, side)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device, generator=_own(device))
    target = torch.empty_like(source)
    return Machine(name, flops, flops32, 2 * size / _best(lambda: target.copy_(source)))


def _own(device) -> torch.Generator:
    """Numbers of which the training, in whose midst this is, knows nothing."""
    return torch.Generator(device).manual_seed(0)


def _product(device, dtype, side: int) -> float:
    # of equal numbers a GPU draws less power, and is faster than it can be in a training
    how = {"device": device, "dtype": dtype, "generator": _own(device)}
    a, b = (torch.randn(side, side, **how) for _ in range(2))
    out = torch.empty_like(a)
    return _best(lambda: torch.mm(a, b, out=out))


def _best(work) -> float:
    """Seconds that a call takes, of several the least."""
    # at the top it would warn, in every training, where CUDA is installed but no GPU is there
    from torch.utils.benchmark import Timer

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=0.1).times)


def of_step(module, shapes: list[tuple], machine: Machine) -> dict[str, Floor]:
    """Phase -> Floor for one step of a ReSSL module on views of these shapes (N, 3, S, S).

    Empty for another method, whose phases are not known.
    """
    if not hasattr(module, "student_views"):
        return {}
    student = network_flops(module, [shapes[i] for i in module.student_views])
    teacher = network_flops(module, [shapes[module.teacher_view]])[0]
    rows, (size, dim) = shapes[module.teacher_view][0], module.queue.shape
    pixels = sum(torch.Size(shape).numel() for shape in shapes)
    # scores and reads of the teacher and of every student view: two products of N x K x D each
    products = 2 * 2 * rows * (1 + len(module.student_views)) * size * dim
    weights = sum(p.numel() for s, _ in module.momentum_pairs for p in s.parameters())
    return {
        "data": _bytes(pixels * (FLOAT + 1), machine, "images in, views out"),
        "student forward": _flops(student[0], machine.flops),
        "teacher forward": _flops(teacher, machine.flops),
        "loss": max(
            _flops(products, machine.flops32),
            _bytes(size * dim * FLOAT, machine, "the queue once"),
            key=lambda floor: floor.seconds,
        ),
        "backward": _flops(student[1], machine.flops),
        # SGD reads weight, gradient, momentum and writes two; EMA reads two and writes one
        "EMA and optimizer": _bytes(8 * weights * FLOAT, machine, "weights 8 times"),
    }


def _flops(count: float, throughput: float) -> Floor:
    return Floor(count / throughput, f"{count / 1e9:.1f} GFLOP")


def _bytes(count: float, machine: Machine, what: str) -> Floor:
    return Floor(count / machine.bytes, f"{count / 1e6:.1f} MB: {what}")


def network_flops(module, shapes: list[tuple]) -> tuple[int, int]:
    """FLOPs of the student's (backbone and head) forward and backward on such views."""
    student = torch.nn.Sequential(module.backbone, module.projector)
    with torch.device("meta"):
        # batch norm is not counted: that of evaluation needs no kernels for groups
        copied = copy.deepcopy(student).to("meta").eval()
        views = [torch.empty(shape) for shape in shapes]
        forward = sum(measure_flops(copied, partial(copied, view)) for view in views)
        both = sum(measure_flops(copied, partial(copied, view), torch.sum) for view in views)
    return forward, both - forward
