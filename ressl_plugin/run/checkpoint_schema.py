"""What a checkpoint must hold to be gone on from, judged before anything takes it for granted.

Its bytes may be sound and its content somebody else's. Keys of others are left to others.
"""

from __future__ import annotations

from numbers import Number

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from ressl_plugin.config.kinds import FLAG, NULL, Kind, one_of, whole
from ressl_plugin.config.schema import PRECISIONS
from ressl_plugin.run.structure import NUMBER, TENSOR, TEXT, Maybe, fault
from ressl_plugin.utils.errors import CheckpointError
from ressl_plugin.utils.rng import refused


def _is_version(value) -> bool:
    try:
        return isinstance(value, str) and bool(Version(value))
    except InvalidVersion:
        return False


def _is_plain(value) -> bool:
    """What a YAML file can say: mappings by words, lists, text, numbers, true, false, nothing."""
    if isinstance(value, dict):
        return all(isinstance(key, str) for key in value) and all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


def _tensor(what: str, holds=lambda tensor: True) -> Kind:
    """A dense tensor of which something holds."""
    dense = lambda v: isinstance(v, Tensor) and v.layout == torch.strided
    return Kind(what, lambda v: dense(v) and holds(v))


def _of_weight(shape: torch.Size) -> Kind:
    """What an optimizer keeps of a weight of this shape."""
    return _tensor(
        f"{tuple(shape)}, of finite numbers",
        lambda t: t.shape == shape and t.is_floating_point() and bool(t.isfinite().all()),
    )


COUNT = Kind("a count", whole(0, 2**62).call)
VERSION = Kind("a version", _is_version)
PLAIN = Kind("text, numbers, true, false, nothing, lists and mappings of them", _is_plain)
DICT = Kind("a dict", lambda v: isinstance(v, dict))
SUM = _tensor("a sum", lambda t: t.shape == () and not t.is_complex())
IMAGES = _tensor("a count", lambda t: t.shape == () and t.dtype == torch.int64)
GENERATOR = _tensor("a generator's state", lambda t: t.dtype == torch.uint8)
OF_CUDA = _tensor("a generator's state", lambda t: t.dtype == torch.uint8 and t.shape == (16,))
WORDS = _tensor("a generator's words", lambda t: t.dtype == torch.int64)

# Lightning's own bookkeeping, whichever of its loops there are
TRACKER = {"ready": COUNT, "completed": COUNT, "started?": COUNT, "processed?": COUNT}
PROGRESS = {"total": TRACKER, "current": TRACKER, "is_last_batch?": FLAG}
LOOP = {
    "state_dict?": {"combined_loader?": [DICT]},
    "*.state_dict": {"_batches_that_stepped?": COUNT},
    "*optim_progress": {"optimizer": {"step": PROGRESS, "zero_grad": PROGRESS}},
    "*progress": PROGRESS,
}
LOADER = {
    "epoch": COUNT, "step": COUNT, "images": COUNT, "batch_size": COUNT, "world_size": COUNT,
    "seed": COUNT, "finished": PLAIN,
}  # fmt: skip
GENERATORS = {
    "python": (NUMBER, WORDS, NUMBER | NULL),
    "numpy": (TEXT, WORDS, NUMBER, NUMBER, NUMBER),
    "torch": GENERATOR,
    "cuda": OF_CUDA | NULL,
}

WEIGHTS = {
    "state_dict": {"*": TENSOR},
    "epoch?": COUNT,
    "loops?": {"fit_loop": {"epoch_progress?": PROGRESS}},
}
TRAINING = {
    "state_dict": {"*": TENSOR},
    "epoch": COUNT,
    "global_step": COUNT,
    "pytorch-lightning_version": VERSION,
    "loops": {"fit_loop": {"epoch_progress": PROGRESS, **LOOP}, "*_loop": LOOP},
    "optimizer_states": [{"state": DICT, "param_groups": [DICT]}],
    "lr_schedulers": [{"last_epoch": COUNT}],
    "callbacks?": {
        "CollapseMonitor?": {"collapsed_at": COUNT | NULL, "uniform_epochs?": COUNT},
        "CheckpointCallback?": {"criterion?": TEXT, "score?": NUMBER},
        "*": DICT,
    },
    # what the plugin adds; the host's checkpoints have none of it
    "ressl_config?": Maybe({
        "optimizer": {"batch_size": COUNT, "*": PLAIN},
        "accumulate_grad_batches?": COUNT,
        "precision?": one_of(*PRECISIONS) | NULL,
        "*": PLAIN,
    }),
    "ressl_rng?": Maybe([GENERATORS]),
    "ressl_skipped_steps?": COUNT,
    "ressl_epoch?": Maybe({
        "bankless?": COUNT | NULL,
        "means?": Maybe([{"*": {"*": (SUM, COUNT | IMAGES)}}]),
    }),
}  # fmt: skip


def _need(path, found: str | None) -> None:
    if found:
        raise CheckpointError(f"{path}: {found}: no checkpoint of a training of this version")


def check_weights(path, state: dict) -> None:
    """Judge what an evaluator reads of a checkpoint.

    Raises:
        CheckpointError: no weights by name, or epochs that are no count.
    """
    _need(path, fault(state, WEIGHTS))


def check_training(path, state: dict) -> None:
    """Judge all that a resume reads; a file of weights alone (an import) has nothing of it.

    Raises:
        CheckpointError: the first key that is not what a training writes.
    """
    check_weights(path, state)
    if "optimizer_states" not in state:
        return
    _need(path, fault(state, TRAINING))
    loaders = state["loops"]["fit_loop"].get("state_dict", {}).get("combined_loader", [])
    if len(loaders) > 1:
        _need(path, f"combined_loader has {len(loaders)} states, a training has one loader")
    for loader in filter(None, loaders):
        _need(path, fault(loader, LOADER, "combined_loader.0"))
    processes = state.get("ressl_rng")
    if processes is not None and not processes:
        _need(path, "ressl_rng is of no process")
    for i, generators in enumerate(processes or ()):
        if why := refused(generators):
            _need(path, f"ressl_rng.{i} is refused ({why})")


def check_optimizers(path, states: list, optimizers: list, schedules: list) -> None:
    """Judge what optimizers and schedules are about to take over; a fused step believes all of it.

    Args:
        states: `optimizer_states` and `lr_schedulers` of the checkpoint.
        optimizers, schedules: those of the run, as they are before they have loaded anything.

    Raises:
        CheckpointError: states of other weights, of other shapes or kinds.
    """
    of_optimizers, of_schedules = states
    _need(path, fault(of_optimizers, tuple(map(_optimizer, optimizers)), "optimizer_states"))
    settings = [{f"{k}?": _like(v) for k, v in s.state_dict().items()} for s in schedules]
    for i, (state, ours) in enumerate(zip(of_schedules, settings)):
        _need(path, fault(state, ours, f"lr_schedulers.{i}"))
    scalar = NUMBER | _of_weight(torch.Size(())) | NULL
    for i, (state, optimizer) in enumerate(zip(of_optimizers, optimizers)):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        for index, of_one in state["state"].items():
            place = f"optimizer_states.{i}.state.{index}"
            if type(index) is not int or not 0 <= index < len(weights):
                _need(path, f"{place} is of no weight of this run")
            each = {"step?": scalar, "*": _of_weight(weights[index].shape) | NULL}
            _need(path, fault(of_one, each, place))


def check_buffers(path, optimizers: list) -> None:
    """A fused SGD has the momentum of all weights with a gradient, or of none.

    Raises:
        CheckpointError: it lacks the momentum of some, which ends in a crash.
    """
    for optimizer in optimizers:
        for group in (g for g in optimizer.param_groups if g.get("fused") and g.get("momentum")):
            moved = [i for i, p in enumerate(group["params"]) if p.grad is not None]
            lacking = [
                i for i in moved
                if optimizer.state.get(group["params"][i], {}).get("momentum_buffer") is None
            ]  # fmt: skip
            if len(lacking) not in (0, len(moved)):
                _need(path, f"the momentum of weight {lacking[0]} is nothing, it must be there")


def _optimizer(optimizer) -> dict:
    """The structure of a state that this optimizer can take over, but for its weights' tensors.

    A setting that is no number may be absent: torch fills it in if the checkpoint is of an earlier
    version. So may what a schedule adds, which the two need not share.
    """

    def of_group(group):
        numbers = group.pop("params")
        same = lambda v: (
            isinstance(v, (list, tuple)) and all(type(n) is int for n in v) and list(v) == numbers
        )
        spare = {k for k in group if isinstance(optimizer.defaults.get(k), (bool, str, type(None)))}
        of = {f"{key}?" if key in spare else key: _like(ours) for key, ours in group.items()}
        return {"params": Kind("the numbers of this run's weights", same), **of}

    return {"param_groups": tuple(map(of_group, optimizer.state_dict()["param_groups"]))}


def _like(ours):
    """The structure of a setting, given its value in this run."""
    if isinstance(ours, (bool, type(None))):
        return Kind("true, false or nothing", (FLAG | NULL).call)
    if isinstance(ours, Number):
        return NUMBER
    if isinstance(ours, (list, tuple)):
        return tuple(map(_like, ours))
    kind = dict if isinstance(ours, dict) else type(ours)
    return Kind(f"a {kind.__name__}", lambda v: isinstance(v, kind))
