"""Batch norm in groups on a GPU, in Triton: three launches forward and four back.

A batch (N, C, ...) of N samples of `size` positions is a matrix of positions x channels: in
channels_last its rows are where they are, in the contiguous format `inner` = size positions of a
channel lie side by side. A program has COLUMNS channels of one chunk of one group's positions,
ROWS at a time. Sums are float32; none runs over squares of numbers far from zero, where their
difference would lose its digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 2048  # numbers that a program holds at a time
_COLUMNS = 64, 1  # channels of a program in channels_last, and in the contiguous format
_PROGRAMS = 1024  # enough to fill a GPU
_WIDTH = 4  # channels that a program of _finalise has


def statistics(x, running_mean, running_var, batches, groups: int, momentum: float | None, eps):
    """Mean and 1 / sqrt(variance + eps) of each group, (2, G, C) float32.

    With running statistics these move towards the means over groups by `momentum`, or where it is
    None to the average over all batches, of which `batches` counts one more.
    """
    layout, grid, tile = _plan(x, groups)
    parts = x.new_empty(2, groups, tile["CHUNKS"], x.shape[1], dtype=torch.float32)
    moments = x.new_empty(2, groups, x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        _moments[grid](x, parts, batches, *layout, **tile)
        _finalise[triton.cdiv(x.shape[1], _WIDTH),](
            parts, moments, running_mean, running_var, batches, momentum, eps, *layout,
            GROUPS=triton.next_power_of_2(groups), WIDTH=_WIDTH, **tile, num_warps=8,
        )  # fmt: skip
    return moments


def normalise(x, moments, weight, bias, groups: int) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, like x."""
    y = torch.empty_like(x)
    layout, grid, tile = _plan(x, groups)
    with torch.cuda.device_of(x):
        _normalise[grid](x, y, moments, weight, bias, *layout, **tile)
    return y


def gradients(grad, x, moments, weight, groups: int) -> tuple[Tensor, Tensor]:
    """From that by y: the gradient by x, like x, and those by bias and weight, (2, C) float32."""
    by_x = torch.empty_like(x)
    layout, grid, tile = _plan(x, groups)
    parts = x.new_empty(2, groups, tile["CHUNKS"], x.shape[1], dtype=torch.float32)
    with torch.cuda.device_of(x):
        _products[grid](grad, x, moments, parts, *layout, **tile)
        sums = parts.sum(2)
        _gradient[grid](grad, x, by_x, moments, weight, sums, *layout, **tile)
    return by_x, sums.sum(1)


def _plan(x: Tensor, groups: int):
    """Where the numbers of a batch are, the programs of a launch, and the tiles of a program."""
    samples, channels = x.shape[:2]
    size = x[0, 0].numel()
    inner = size if x.is_contiguous() else 1
    columns = min(_COLUMNS[inner > 1], triton.next_power_of_2(channels))
    rows, blocks = _TILE // columns, triton.cdiv(channels, columns)
    tiles = triton.cdiv(triton.cdiv(samples, groups) * size, rows)
    wanted = min(tiles, max(1, _PROGRAMS // (groups * blocks)))
    chunks = triton.next_power_of_2(wanted)
    tile = {"CHUNKS": chunks, "ROWS": rows, "COLUMNS": columns}
    return (samples, channels, size, inner, groups), (chunks, blocks, groups), tile


@triton.jit
def _share(group, chunk, samples, size, groups, CHUNKS, ROWS):
    """First position and number of positions of a chunk of a group; the first groups hold one
    sample more where the batch cannot be split evenly."""
    least, larger = samples // groups, samples % groups
    first = (group * least + tl.minimum(group, larger)) * size
    count = (least + (group < larger)) * size
    length = tl.cdiv(tl.cdiv(count, CHUNKS), ROWS) * ROWS
    return first + chunk * length, tl.maximum(tl.minimum(count - chunk * length, length), 0)


@triton.jit
def _tile(first, start, count, column, channels, inner, ROWS: tl.constexpr):
    """Addresses of ROWS positions from first + start on, and which of them are of the chunk."""
    row = start + tl.arange(0, ROWS)
    sample, rest = (first + row) // inner, (first + row) % inner
    base = sample.to(tl.int64) * (channels * inner) + rest  # a large batch is beyond 32 bits
    there = (row < count)[:, None] & (column < channels)[None, :]
    return base[:, None] + column[None, :] * inner, there


@triton.jit
def _moments(x, parts, batches, samples, channels, size, inner, groups,
             CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Mean and sum of squares about it, of each chunk."""
    chunk, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if batches is not None:  # noqa: SIM102 (known to the compiler; what follows is not)
        if chunk + block + group == 0:
            tl.store(batches, tl.load(batches) + 1)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    first, count = _share(group, chunk, samples, size, groups, CHUNKS, ROWS)
    at, there = _tile(first, 0, count, column, channels, inner, ROWS)
    total = tl.maximum(count, 1).to(tl.float32)
    # the mean of the first tile, near enough to that of the chunk
    near = tl.sum(tl.load(x + at, there, 0.0).to(tl.float32), 0) / tl.minimum(total, ROWS)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        at, there = _tile(first, start, count, column, channels, inner, ROWS)
        value = tl.load(x + at, there, 0.0).to(tl.float32)
        value = tl.where(there, value - near[None, :], 0.0)
        sums += value
        squares += value * value
    off = tl.sum(sums, 0) / total
    part = (group * CHUNKS + chunk) * channels + column
    tl.store(parts + part, near + off, column < channels)
    part += groups * CHUNKS * channels
    tl.store(parts + part, tl.sum(squares, 0) - total * off * off, column < channels)


@triton.jit
def _finalise(parts, moments, running_mean, running_var, batches, momentum, eps,
              samples, channels, size, inner, groups,
              GROUPS: tl.constexpr, WIDTH: tl.constexpr,
              CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """The moments of the chunks to those of their groups; the running statistics."""
    column = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    group, chunk = tl.arange(0, GROUPS)[:, None], tl.arange(0, CHUNKS)[None, :]
    _, count = _share(group, chunk, samples, size, groups, CHUNKS, ROWS)
    count = tl.where(group < groups, count, 0).to(tl.float32)[:, :, None]
    at = ((group * CHUNKS + chunk) * channels)[:, :, None] + column[None, None, :]
    there = (count > 0) & (column < channels)[None, None, :]
    means = tl.load(parts + at, there, 0.0)
    squares = tl.load(parts + groups * CHUNKS * channels + at, there, 0.0)
    total = tl.maximum(tl.sum(count, 1), 2)  # (GROUPS, 1); two only where there is no such group
    centre = tl.sum(count * means, 1) / total
    apart = means - centre[:, None, :]
    square = tl.sum(squares + count * apart * apart, 1)
    at, there = group * channels + column[None, :], (group < groups) & (column < channels)[None, :]
    tl.store(moments + at, centre, there)
    tl.store(moments + groups * channels + at, 1 / tl.sqrt(square / total + eps), there)
    if running_mean is not None:
        if momentum is None:
            step = 1 / tl.load(batches).to(tl.float32)
        else:
            step = momentum
        of_batch = tl.sum(centre, 0) / groups
        before = tl.load(running_mean + column, column < channels, 0.0).to(tl.float32)
        tl.store(running_mean + column, before + step * (of_batch - before), column < channels)
        of_batch = tl.sum(square / (total - 1), 0) / groups
        before = tl.load(running_var + column, column < channels, 0.0).to(tl.float32)
        tl.store(running_var + column, before + step * (of_batch - before), column < channels)


@triton.jit
def _normalise(x, y, moments, weight, bias, samples, channels, size, inner, groups,
               CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    chunk, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    first, count = _share(group, chunk, samples, size, groups, CHUNKS, ROWS)
    inside = column < channels
    centre = tl.load(moments + group * channels + column, inside, 0.0)
    scale = tl.load(moments + (groups + group) * channels + column, inside, 0.0)
    shift = tl.zeros([COLUMNS], tl.float32)
    if weight is not None:
        scale *= tl.load(weight + column, inside, 0.0).to(tl.float32)
    if bias is not None:
        shift += tl.load(bias + column, inside, 0.0).to(tl.float32)
    for start in range(0, count, ROWS):
        at, there = _tile(first, start, count, column, channels, inner, ROWS)
        value = tl.load(x + at, there, 0.0).to(tl.float32)
        value = (value - centre[None, :]) * scale[None, :] + shift[None, :]
        tl.store(y + at, value, there)


@triton.jit
def _products(grad, x, moments, parts, samples, channels, size, inner, groups,
              CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Sums of the gradient, and of its product with the normalised x, of each chunk."""
    chunk, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    first, count = _share(group, chunk, samples, size, groups, CHUNKS, ROWS)
    inside = column < channels
    centre = tl.load(moments + group * channels + column, inside, 0.0)
    scale = tl.load(moments + (groups + group) * channels + column, inside, 0.0)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    products = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        at, there = _tile(first, start, count, column, channels, inner, ROWS)
        slope = tl.load(grad + at, there, 0.0).to(tl.float32)
        value = tl.load(x + at, there, 0.0).to(tl.float32)
        sums += slope
        products += slope * (value - centre[None, :])
    part = (group * CHUNKS + chunk) * channels + column
    tl.store(parts + part, tl.sum(sums, 0), inside)
    part += groups * CHUNKS * channels
    tl.store(parts + part, tl.sum(products, 0) * scale, inside)


@triton.jit
def _gradient(grad, x, by_x, moments, weight, sums, samples, channels, size, inner, groups,
              CHUNKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """weight * invstd * (grad - mean of grad - normalised x * mean of grad * normalised x)."""
    chunk, block, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    first, count = _share(group, chunk, samples, size, groups, CHUNKS, ROWS)
    inside = column < channels
    centre = tl.load(moments + group * channels + column, inside, 0.0)
    scale = tl.load(moments + (groups + group) * channels + column, inside, 0.0)
    total = (samples // groups + (group < samples % groups)) * size
    offset = tl.load(sums + group * channels + column, inside, 0.0) / total
    slant = tl.load(sums + (groups + group) * channels + column, inside, 0.0) / total * scale
    if weight is not None:
        scale *= tl.load(weight + column, inside, 0.0).to(tl.float32)
    for start in range(0, count, ROWS):
        at, there = _tile(first, start, count, column, channels, inner, ROWS)
        slope = tl.load(grad + at, there, 0.0).to(tl.float32)
        value = tl.load(x + at, there, 0.0).to(tl.float32)
        slope -= offset[None, :] + (value - centre[None, :]) * slant[None, :]
        tl.store(by_x + at, slope * scale[None, :], there)
