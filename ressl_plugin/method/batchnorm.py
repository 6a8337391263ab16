"""Batch norm over groups of a batch: the paper's stand-in for shuffled BN on one GPU (Section 4.1).

A group is a contiguous chunk of the batch, as a rank's share of a batch is. So b images on each of
R ranks in G groups are normalised exactly as R x b images on one in R x G groups.
"""

import importlib.util
import logging
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

KERNEL_DEVICES = ("cuda", "meta")
KERNEL_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Grouped(_BatchNorm):
    """Mixed into a batch norm: while training, statistics are those of each group.

    The running statistics move, once a batch, towards the mean over the groups of a group's mean
    and of its unbiased variance, (sum (x - mean)^2) / (m - 1) over the m values of a channel in
    the group: what G plain layers, each fed one group, would hold on average. Parameters, buffers,
    `momentum=None` (a cumulative average) and evaluation are plain batch norm's.
    """

    # tensors, or None; mypy would ask at every line
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(self, num_features: int, *args, groups: int, **kwargs) -> None:
        super().__init__(num_features, *args, **kwargs)
        self.groups = _at_least_one(groups)

    def forward(self, x: Tensor) -> Tensor:
        return self._normalise(x) if self.training else super().forward(x)

    def _normalise(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        if len(x) < 2 * self.groups:
            raise UserError(
                f"batchnorm.groups: a batch of {len(x)} leaves fewer than 2 samples to some of "
                f"{self.groups} groups; at least {2 * self.groups} a device are needed, or fewer "
                "groups"
            )
        if _has_kernels(x):
            return self._by_kernels(x)
        if torch.compiler.is_compiling():
            normalise = _traced
        elif x.device.type != "cpu" and len(x) % self.groups == 0:
            normalise = _folded
        else:
            normalise = _GroupBatchNorm.apply
        y, mean, var = normalise(x, self.weight, self.bias, self.groups, self.eps)
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                step: Any = self.momentum
                if step is None:
                    # a tensor, so that nothing waits for the device
                    step = self.num_batches_tracked.reciprocal().to(self.running_mean.dtype)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
                self.running_var.lerp_(var.to(self.running_var.dtype), step)
        return y

    def _by_kernels(self, x: Tensor) -> Tensor:
        x = _dense(x, x)
        running = self.running_mean, self.running_var, self.num_batches_tracked
        with torch.no_grad():
            moments = _moments(x, *running, self.groups, self.momentum, self.eps)
        return _apply(x, moments, self.weight, self.bias, self.groups)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}"


class GroupBatchNorm1d(_Grouped, nn.BatchNorm1d):
    """nn.BatchNorm1d with the training statistics of each group: (N, C) or (N, C, L)."""


class GroupBatchNorm2d(_Grouped, nn.BatchNorm2d):
    """nn.BatchNorm2d with the training statistics of each group: (N, C, H, W)."""


class GroupBatchNorm3d(_Grouped, nn.BatchNorm3d):
    """nn.BatchNorm3d with the training statistics of each group: (N, C, D, H, W)."""


class _GroupedAct(_Grouped):
    """The same for timm's BatchNormAct2d, which drops and activates what it has normalised."""

    act: nn.Module
    drop: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self._normalise(x))) if self.training else super().forward(x)


def to_groups(module: nn.Module, groups: int) -> nn.Module:
    """Make every BatchNorm*d in `module` one over `groups` groups, in place; `module` itself too.

    The layers stay the same objects: parameters, buffers, hooks and state-dict keys are untouched.
    Layers that are grouped already get the new number of groups.

    Raises:
        UserError: groups below 1, or a batch norm of a kind that cannot be grouped (named).
    """
    _at_least_one(groups)
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, _BatchNorm)]
    kinds = [_grouped_kind(type(layer), name) for name, layer in layers]  # all or nothing
    for (_, layer), kind in zip(layers, kinds):
        layer.__class__ = kind
        layer.groups = groups  # type: ignore[assignment]  # of the class that it now has
    return module


def _at_least_one(groups: int) -> int:
    if groups < 1:
        raise UserError(f"batchnorm.groups: at least 1 expected, got {groups}")
    return groups


def _has_kernels(x: Tensor) -> bool:
    """Whether batchnorm_kernels.py is for it; meta tensors stand for a GPU's."""
    if x.device.type not in KERNEL_DEVICES or x.dtype not in KERNEL_TYPES:
        return False
    return _gpu_takes_kernels() if x.is_cuda else _has_triton()


def _constant(function):
    """To torch.compile, which does not look inside: torch.compiler.assume_constant_result, but for
    the import of a compiler."""
    function._dynamo_marked_constant = True
    return function


@_constant
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@_constant
def _gpu_takes_kernels() -> bool:
    return _triton_starts()


@cache
def _triton_starts() -> bool:
    """Whether Triton is there, knows the GPU, and has the compiler that it needs to start."""
    if not _has_triton() or torch.cuda.get_device_capability() < (7, 0):
        return False
    from triton.runtime import driver

    try:
        driver.active.utils  # noqa: B018 (it is built when asked for)
    except Exception as error:  # of Triton, of a compiler, of a linker: nothing of ours is called
        log.warning(
            "batch norm in groups: PyTorch's kernels, which are slower: Triton cannot build any "
            "here, for want of a C compiler or of Python's headers (%s: %s)",
            type(error).__name__,
            error,
        )
        return False
    return True


# Operators, so that a compiler and meta tensors need not look inside. The first writes the running
# statistics, and what writes to its inputs can have no gradient: so there are two on the way.


@torch.library.custom_op(
    "ressl_plugin::group_moments", mutates_args=("running_mean", "running_var", "batches")
)
def _moments(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    groups: int,
    momentum: float | None,
    eps: float,
) -> Tensor:
    from ressl_plugin.method.batchnorm_kernels import statistics

    return statistics(x, running_mean, running_var, batches, groups, momentum, eps)


@_moments.register_fake
def _(x, running_mean, running_var, batches, groups, momentum, eps):
    return x.new_empty(2, groups, x.shape[1], dtype=torch.float32)


@torch.library.custom_op("ressl_plugin::group_normalise", mutates_args=())
def _apply(
    x: Tensor, moments: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int
) -> Tensor:
    from ressl_plugin.method.batchnorm_kernels import normalise

    return normalise(x, moments, weight, bias, groups)


@_apply.register_fake
def _(x, moments, weight, bias, groups):
    return torch.empty_like(x)


@torch.library.custom_op("ressl_plugin::group_gradients", mutates_args=())
def _gradients(
    grad: Tensor, x: Tensor, moments: Tensor, weight: Tensor | None, groups: int
) -> tuple[Tensor, Tensor]:
    from ressl_plugin.method.batchnorm_kernels import gradients

    return gradients(grad, x, moments, weight, groups)


@_gradients.register_fake
def _(grad, x, moments, weight, groups):
    return torch.empty_like(x), x.new_empty(2, x.shape[1], dtype=torch.float32)


def _keep(ctx, inputs, output):
    x, moments, weight, bias, ctx.groups = inputs
    ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias)]
    ctx.save_for_backward(x, moments, weight)


def _apply_backward(ctx, grad):
    x, moments, weight = ctx.saved_tensors
    by_x, (by_bias, by_weight) = _gradients(_dense(grad, x), x, moments, weight, ctx.groups)
    by_weight, by_bias = (
        None if dtype is None else by.to(dtype)
        for by, dtype in zip((by_weight, by_bias), ctx.dtypes)
    )
    return by_x, None, by_weight, by_bias, None


_apply.register_autograd(_apply_backward, setup_context=_keep)


# Three ways without kernels of ours: (N, C, ...) of any floating type and memory format, which the
# output keeps, to that and the mean over groups of a group's mean and of its unbiased variance,
# (C,) each, detached. Where N is no multiple of groups, the first groups hold one sample more.


def _folded(x, weight, bias, groups, eps):
    """One batch norm over groups x C channels, between two copies of the batch.

    Where each kernel has to be launched by the processor, three for a layer are faster than one a
    group; on a processor the copies cost more than they save.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    stats = x.new_zeros(2, groups * x.shape[1], dtype=dtype)
    stats[1].fill_(1.0)  # with momentum 1 they become the groups' own
    # the kernels want parameters of half inputs in float32
    weight = stats.new_ones(x.shape[1]) if weight is None else weight.to(dtype)
    bias = stats.new_zeros(x.shape[1]) if bias is None else bias.to(dtype)
    over = weight.repeat(groups), bias.repeat(groups)
    y = F.batch_norm(_fold(x, groups), *stats, *over, True, 1.0, eps)
    mean, var = stats.view(2, groups, -1).mean(1)
    return _unfold(y, groups), mean, var


def _fold(x: Tensor, groups: int) -> Tensor:
    """(groups * n, C, ...) -> (n, groups * C, ...), the memory format kept."""
    if _channels_last(x):
        apart = x.movedim(1, -1).unflatten(0, (groups, -1)).movedim(0, -2)
        return apart.flatten(-2).movedim(-1, 1)
    return x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def _unfold(y: Tensor, groups: int) -> Tensor:
    """(n, groups * C, ...) -> (groups * n, C, ...), the memory format kept."""
    if _channels_last(y):
        apart = y.movedim(1, -1).unflatten(-1, (groups, -1)).movedim(-2, 0)
        return apart.flatten(0, 1).movedim(-1, 1)
    return y.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def _channels_last(t: Tensor) -> bool:
    """Whether its channels are what changes fastest in memory, and not by chance."""
    wanted = {4: torch.channels_last, 5: torch.channels_last_3d}.get(t.dim())
    return wanted is not None and not t.is_contiguous() and t.is_contiguous(memory_format=wanted)


class _GroupBatchNorm(torch.autograd.Function):
    """PyTorch's own kernel for each group, reading and writing slices of whole tensors: no chunk
    is copied, neither on the way forward nor back, and the memory format stays."""

    @staticmethod
    def forward(ctx, x, weight, bias, groups, eps):
        x = _dense(x, x)
        # The kernels keep half inputs' statistics in float32 only if the parameters are too.
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        ctx.dtypes = [None if p is None else p.dtype for p in (weight, bias)]
        like = x.new_empty(x.shape[1], dtype=dtype)
        weight = torch.ones_like(like) if weight is None else weight.to(dtype)
        bias = torch.zeros_like(like) if bias is None else bias.to(dtype)
        y = torch.empty_like(x)
        # Running mean and variance of one step with momentum 1: the group's own; then what the
        # kernel's backward pass wants.
        stats = x.new_zeros(4, groups, x.shape[1], dtype=dtype)
        stats[1] = 1.0
        for part, out, g in zip(x.tensor_split(groups), y.tensor_split(groups), range(groups)):
            mean, var, save_mean, save_invstd = stats[:, g]
            torch.ops.aten.native_batch_norm.out(
                part, weight, bias, mean, var, True, 1.0, eps,
                out=out, save_mean=save_mean, save_invstd=save_invstd,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, stats)
        ctx.groups, ctx.eps = groups, eps
        mean, var = stats[:2].mean(1)
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _mean, _var):
        x, weight, stats = ctx.saved_tensors
        by_x = torch.empty_like(x)
        parts = [t.tensor_split(ctx.groups) for t in (_dense(grad, x), x, by_x)]
        grads = stats.new_zeros(2, ctx.groups, x.shape[1])
        for g, (grad_part, part, out) in enumerate(zip(*parts)):
            torch.ops.aten.native_batch_norm_backward.out(
                grad_part, part, weight, *stats[:, g], True, ctx.eps, [True] * 3,
                out0=out, out1=grads[0, g], out2=grads[1, g],
            )  # fmt: skip
        total = grads.sum(1)
        by_parameters = [
            total[i].to(ctx.dtypes[i]) if ctx.needs_input_grad[i + 1] else None for i in range(2)
        ]
        return by_x, *by_parameters, None, None


def _dense(t: Tensor, like: Tensor) -> Tensor:
    """`t` in the memory format of `like`; a copy only if it is in another."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim())
    if channels_last is None or like.is_contiguous():
        return t.contiguous()
    kept = like.is_contiguous(memory_format=channels_last)
    return t.contiguous(memory_format=channels_last if kept else torch.contiguous_format)


def _traced(x, weight, bias, groups, eps):
    """The formula in tensor operations, for a compiler to fuse: run one by one they are slow."""
    size, larger = divmod(x.shape[0], groups)
    shape = [1, 1, -1] + [1] * (x.dim() - 2)
    outputs, means, variances = [], [], []
    start = 0
    for count, samples in ((larger, size + 1), (groups - larger, size)):
        if count == 0:
            continue
        part = x[start : start + count * samples].unflatten(0, (count, samples))
        part = part if x.dtype == torch.float64 else part.float()
        start += count * samples
        dims = [d for d in range(part.dim()) if d not in (0, 2)]
        var, mean = torch.var_mean(part, dim=dims, correction=0, keepdim=True)
        y = (part - mean) * torch.rsqrt(var + eps)
        if weight is not None:
            y = y * weight.view(shape) + bias.view(shape)
        outputs.append(y.to(x.dtype).flatten(0, 1))
        values = part[0, :, 0].numel()
        means.append(mean.detach().view(count, -1))
        variances.append(var.detach().view(count, -1) * (values / (values - 1)))
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return y, torch.cat(means).mean(0), torch.cat(variances).mean(0)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any layer in it normalises by the statistics of a batch."""
    return any(isinstance(layer, _BatchNorm) for layer in module.modules())


def running_statistics(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The running means and variances, (C,) each, of every batch norm in some modules."""
    layers = [layer for module in modules for layer in module.modules()]
    pairs = [(b.running_mean, b.running_var) for b in layers if isinstance(b, _BatchNorm)]
    return [buffer for pair in pairs for buffer in pair if buffer is not None]


def _grouped_kind(kind: type, name: str) -> type:
    if issubclass(kind, _Grouped):
        return kind
    for grouped in (GroupBatchNorm1d, GroupBatchNorm2d, GroupBatchNorm3d):
        if kind is grouped.__bases__[1]:
            return grouped
    if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."):
        return _act_kind(kind)  # type: ignore[arg-type]  # mypy doubts that classes are hashable
    raise UserError(
        f"batchnorm.groups: layer '{name}' is a {kind.__name__}, which cannot be split in groups; "
        "BatchNorm1d, 2d, 3d and timm's BatchNormAct2d can"
    )


@lru_cache
def _act_kind(kind: type) -> type:
    return type(f"Group{kind.__name__}", (_GroupedAct, kind), {"__module__": __name__})
