"""Operations of one training step of the CIFAR recipe, counted without a GPU.

    python benchmarks/launches.py --json launches.json

The step runs on meta tensors, which stand for the device and hold no data: every operation on one
is a kernel that the processor would have to launch there (device_ops), one on the processor's own
tensors is work that the device may wait for (host_ops), a tensor that goes from here to there is
a copy, and what asks the device for a number is a wait. Views of a tensor's memory and empty
tensors are none of these. What Lightning adds is not counted, nor are the casts of autocast; an
optimizer that is fused and a foreach operation are one. graph_breaks are those that
torch._dynamo.explain finds in the views, the student and the teacher. Fewer is better.

captured_* are of performance.capture: of the function that a CUDA graph replays and the one copy
before it. What the host draws and packs for the next step meanwhile is listed, but no part of them.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager, nullcontext
from unittest import mock

import common
import torch
import training
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ressl_plugin.views import batched, recipe

BARS = {"device_ops": 800, "waits": 0, "graph_breaks": 0}
CAPTURED = {"host_ops": 0, "copies": 1, "waits": 0}  # bars, too
DEVICE = "meta"
# which meta tensors have none of
WITHOUT_AUTOCAST = mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext())
NOTHING = ("empty", "new_empty", "detach", "_unsafe_view", "set_", "lift_fresh", "alias",
           "_record_function")  # fmt: skip
WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select")
OF_SEVERAL = {"group_moments": 2, "group_normalise": 1, "group_gradients": 4}
_BACKWARD = torch.ops.aten.native_batch_norm_backward.out
KINDS = ("device_ops", "host_ops", "copies", "waits")
INPUTS, STEP = "captured: inputs, packed on the host", "captured: the step"


class Counts(TorchDispatchMode):
    """Every operation below autograd: (kind, part of the step, name) -> how often.

    Attributes:
        part: of the step, for what follows.
    """

    def __init__(self):
        super().__init__()
        self.found, self.part = Counter(), ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        there = _on_device(args, kwargs or {})
        if name == "_local_scalar_dense" and there:
            self.found["waits", self.part, name] += 1
            return 0.0
        if name == "_fused_sgd_" and there:  # not to be had on meta tensors
            self.found["device_ops", self.part, name] += 1
            return None
        result = func(*args, **(kwargs or {}))
        if _works(func, name):
            arrives = _on_device(result)
            if name == "copy_":  # from where
                there = _on_device(args[1])
            kind = "device_ops" if there or arrives else "host_ops"
            if arrives and not there and name in ("_to_copy", "copy_"):
                kind = "copies"
            elif there and (name in WAITS or not arrives):
                kind = "waits"
            self.found[kind, self.part, name] += _kernels(func)
        return result

    @contextmanager
    def within(self, part: str):
        """What is counted here is of this part of the step."""
        before, self.part = self.part, part
        yield
        self.part = before

    def total(self, kind: str, part: str | None = None) -> int:
        """Operations of a kind, of the whole step or a part of it."""
        return sum(n for (k, p, _), n in self.found.items() if k == kind and part in (None, p))


def _on_device(*values) -> bool:
    return any(isinstance(v, torch.Tensor) and v.device.type == DEVICE for v in tree_leaves(values))


def _works(func, name: str) -> bool:
    """Whether anything is computed or moved: not by a view, nor by memory that nobody fills."""
    returns = func._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return bool(returns) and not view and not name.startswith(NOTHING)


def _kernels(func) -> int:
    """Launches of one operation: of group batch norm's what method/batchnorm_kernels.py makes; of
    PyTorch's backward pass of it three tensors, and a copy of each to where it should be."""
    return OF_SEVERAL.get(func.__name__.split(".")[0], 4 if func is _BACKWARD else 1)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Count; returns the figures."""
    parser = common.arguments(__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--most", type=int, default=12, help="operations that are listed")
    args = parser.parse_args(argv)
    common.begin(args, f"batch {args.batch}, counted on {DEVICE} tensors")
    cfg = training.settings(overrides=[f"optimizer.batch_size={args.batch}", "devices=1"])
    counts = one_step(cfg)
    figures = {kind: counts.total(kind) for kind in KINDS}
    breaks = graph_breaks(cfg)
    figures["graph_breaks"] = sum(breaks.values())
    rows = [*_rows(counts, breaks), ("a step", *figures.values())]
    rows.append(("bar", *(f"<= {BARS[key]}" if key in BARS else "" for key in figures)))
    captured = captured_step(cfg)
    rows += _rows(captured, {})
    rows.append(("bar, captured", "", *(f"<= {bar}" for bar in CAPTURED.values()), ""))
    common.table(rows, ("", *figures))
    figures |= {f"captured_{kind}": captured.total(kind, STEP) for kind in KINDS}
    figures["captured_copies"] += captured.total("copies", INPUTS)
    figures["captured_waits"] += captured.total("waits", INPUTS)
    listed = [(f"{part}: {name}", kind, n) for (kind, part, name), n
              in counts.found.most_common(args.most)]  # fmt: skip
    common.table(listed, ("", "kind", "times"))
    return common.finish(args, figures)


@WITHOUT_AUTOCAST
def one_step(cfg) -> Counts:
    """The second training step: what is made once and kept is there by then."""
    model = training.ours(cfg).to(DEVICE).train()
    batches = iter(training.random_images(cfg, 32, 3 * cfg.optimizer.batch_size, DEVICE))
    for _ in range(2):
        model.zero_grad()
        counts = Counts()
        with counts:
            with counts.within("views"):
                batch = next(batches)
            with counts.within("forward passes, loss, memory"), _apart(model, counts):
                loss = model.training_step(batch, 0)
            with counts.within("backward pass"):
                loss.backward()
            with counts.within("teacher (Eq. 6)"):
                model.update_teacher(0.99)
        counts.found["device_ops", "optimizer", "_fused_sgd_"] += 1
    return counts


def _rows(counts: Counts, breaks: dict[str, int]) -> list[tuple]:
    parts = dict.fromkeys(part for _, part, _ in counts.found)
    return [(part, *(counts.total(kind, part) for kind in KINDS), breaks.get(part, ""))
            for part in parts]  # fmt: skip


@WITHOUT_AUTOCAST
def captured_step(cfg) -> Counts:
    """The second step of CapturedReSSL: its inputs' way to the device, and what is replayed."""
    model = training.ours(cfg, performance__capture=True).to(DEVICE).train()
    sgd = torch.optim.SGD(model.learnable_params, 0.1, 0.9, fused=True)
    sgd._need_device_dtype_check_for_fused = False  # it has never heard of meta tensors
    loader = training.random_images(cfg, 32, 3 * cfg.optimizer.batch_size, DEVICE, drawn=False)
    batches = iter(loader)
    model.on_train_start()
    for _ in range(2):
        counts, batch = Counts(), next(batches)
        with counts:
            with counts.within(INPUTS):
                model.load(batch, 0, [group["lr"] for group in sgd.param_groups], 0.99)
            with counts.within(STEP):
                model.step(loader, sgd)
    return counts


@contextmanager
def _apart(model, counts: Counts):
    """The networks' operations under their own names."""
    parts = {"student": (model.backbone, model.projector),
             "teacher": (model.momentum_backbone, model.momentum_projector)}  # fmt: skip
    before = counts.part

    def enter(part):
        return lambda *_: setattr(counts, "part", part)

    hooks = []
    for part, networks in parts.items():
        for network in networks:
            hooks.append(network.register_forward_pre_hook(enter(part)))
            hooks.append(network.register_forward_hook(lambda *_: enter(before)()))
    yield
    for hook in hooks:
        hook.remove()


def graph_breaks(cfg) -> dict[str, int]:
    """Of the views, the student and the teacher, as `performance.compile` compiles them."""
    model = training.ours(cfg).train()
    n, view = 2 * max(1, cfg.batchnorm.groups), recipe.read(cfg.augmentations).crops[0]
    images = torch.rand(n, 3, 32, 32) * 255
    params = batched.draw_params(view, n, 32, 32)
    calls = {
        "views": lambda: torch._dynamo.explain(batched.apply_dense)(images, params, view),
        "student": lambda: torch._dynamo.explain(model.backbone)(images),
        "teacher": lambda: torch._dynamo.explain(model.momentum_backbone)(images),
    }
    found = {}
    for part, call in calls.items():
        torch._dynamo.reset()
        found[part] = call().graph_break_count
    return found


if __name__ == "__main__":
    main()
