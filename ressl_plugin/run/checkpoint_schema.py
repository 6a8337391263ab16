"""What a checkpoint must hold to be gone on from, judged before anything takes it for granted.

Its bytes may be sound and its content somebody else's. Keys of others are left to others.
"""

from __future__ import annotations

import math

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from ressl_plugin.utils.errors import CheckpointError
from ressl_plugin.utils.rng import refused, rng_state

_COUNTERS = {"ready", "started", "processed", "completed", "_batches_that_stepped"}
_LOADER = ("epoch", "step", "images", "batch_size", "world_size", "seed")


class _Judge:
    """Of the values of one checkpoint: each test names the key that fails it."""

    def __init__(self, path):
        self.path = path

    def need(self, holds: bool, where: str, value, what: str) -> None:
        if not holds:
            shown = repr(value) if isinstance(value, (bool, int, float, str)) else None
            shown = shown or ("nothing" if value is None else f"a {type(value).__name__}")
            raise CheckpointError(
                f"{self.path}: {where} is {shown[:80]}, it must be {what}: no checkpoint of a "
                "training of this version"
            )

    def dict(self, value, where: str, *keys: str) -> dict:
        self.need(isinstance(value, dict), where, value, "a dict")
        for key in keys:
            self.need(key in value, f"{where}.{key}", None, "there")
        self.need(
            all(isinstance(k, (str, int)) for k in value), f"a key of {where}", None, "a name"
        )
        return value

    def list(self, value, where: str) -> list:
        self.need(isinstance(value, (list, tuple)), where, value, "a list")
        return list(value)

    def count(self, value, where: str) -> None:
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62
        self.need(good, where, value, "a count")

    def number(self, value, where: str) -> None:
        good = isinstance(value, (int, float)) and math.isfinite(value)
        self.need(good, where, value, "a finite number")


def check_weights(path, state: dict) -> None:
    """Judge what an evaluator reads of a checkpoint.

    Raises:
        CheckpointError: no weights by name, or epochs that are no count.
    """
    judge = _Judge(path)
    judge.need("state_dict" in state, "state_dict", None, "there")
    for name, value in judge.dict(state["state_dict"], "state_dict").items():
        judge.need(isinstance(value, Tensor), f"state_dict.{name}", value, "a tensor")
        judge.need(isinstance(name, str), f"state_dict.{name}", value, "under a name")
    if "loops" in state:
        loop = judge.dict(judge.dict(state["loops"], "loops", "fit_loop")["fit_loop"], "fit_loop")
        if "epoch_progress" in loop:  # not of every version of Lightning
            _loops(judge, {"epoch_progress": loop["epoch_progress"]}, "loops.fit_loop")
    elif "epoch" in state:
        judge.count(state["epoch"], "epoch")


def check_training(path, state: dict) -> None:
    """Judge all that a resume reads; a file of weights alone (an import) has nothing of it.

    Raises:
        CheckpointError: the first key that is not what a training writes.
    """
    check_weights(path, state)
    if "optimizer_states" not in state:
        return
    judge = _Judge(path)
    for key in ("epoch", "global_step", "loops", "lr_schedulers", "pytorch-lightning_version"):
        judge.need(key in state, key, None, "there")
    judge.count(state["epoch"], "epoch")
    judge.count(state["global_step"], "global_step")
    _version(judge, state["pytorch-lightning_version"])
    judge.dict(state["loops"]["fit_loop"], "loops.fit_loop", "epoch_progress")
    _loops(judge, state["loops"], "loops")
    for i, one in enumerate(judge.list(state["optimizer_states"], "optimizer_states")):
        judge.dict(one, f"optimizer_states.{i}", "state", "param_groups")
    for i, one in enumerate(judge.list(state["lr_schedulers"], "lr_schedulers")):
        found = judge.dict(one, f"lr_schedulers.{i}", "last_epoch")
        judge.count(found["last_epoch"], f"lr_schedulers.{i}.last_epoch")
    callbacks = judge.dict(state.get("callbacks", {}), "callbacks")
    for name, value in callbacks.items():
        judge.dict(value, f"callbacks.{name}", *["collapsed_at"] * (name == "CollapseMonitor"))
    _own(judge, state)


def check_optimizers(path, states: list, optimizers: list, schedules: list) -> None:
    """Judge what optimizers and schedules are about to take over; a fused step believes all of it.

    Args:
        states: `optimizer_states` and `lr_schedulers` of the checkpoint.
        optimizers, schedules: those of the run, as they are before they have loaded anything.

    Raises:
        CheckpointError: states of other weights, of other shapes or kinds.
    """
    judge, (of_optimizers, of_schedules) = _Judge(path), states
    _as_many(judge, of_optimizers, optimizers, "optimizer_states")
    for i, (state, optimizer) in enumerate(zip(of_optimizers, optimizers)):
        _optimizer(judge, state, optimizer, f"optimizer_states.{i}")
    for i, (state, schedule) in enumerate(zip(of_schedules, schedules)):
        for key, ours in schedule.state_dict().items():
            if key in state:
                _kind(judge, state[key], ours, f"lr_schedulers.{i}.{key}")


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
            where = f"the momentum of weight {lacking[0]}" if lacking else ""
            _Judge(path).need(len(lacking) in (0, len(moved)), where, None, "there, as of others")


def _version(judge, value) -> None:
    judge.need(isinstance(value, str), "pytorch-lightning_version", value, "a version")
    try:
        Version(value)
    except InvalidVersion:
        judge.need(False, "pytorch-lightning_version", value, "a version")


def _loops(judge, value, where: str) -> None:
    """Lightning's own bookkeeping, whichever of its loops there are."""
    for name, inner in judge.dict(value, where).items():
        place, key = f"{where}.{name}", str(name).rpartition(".")[2]
        if key in _COUNTERS:
            judge.count(inner, place)
        elif key == "is_last_batch":
            judge.need(isinstance(inner, bool), place, inner, "true or false")
        elif key == "combined_loader":
            one = len(judge.list(inner, place)) <= 1  # a training has one loader
            judge.need(one, f"the length of {place}", len(inner), "1")
        elif key in ("step", "zero_grad") or key.endswith("progress"):
            whole = ("optimizer",) if key == "optim_progress" else ("total", "current")
            _loops(judge, judge.dict(inner, place, *whole), place)
        elif key == "optimizer":
            _loops(judge, judge.dict(inner, place, "step", "zero_grad"), place)
        elif key in ("total", "current"):
            _loops(judge, judge.dict(inner, place, "ready", "completed"), place)
        else:
            _loops(judge, inner, place)


def _as_many(judge, value, ours, where: str) -> list:
    found = judge.list(value, where)
    judge.need(len(found) == len(ours), f"the length of {where}", len(found), f"{len(ours)}")
    return found


def _optimizer(judge, value: dict, optimizer, where: str) -> None:
    groups = optimizer.state_dict()["param_groups"]
    found = _as_many(judge, value["param_groups"], groups, f"{where}.param_groups")
    for i, (group, ours) in enumerate(zip(found, groups)):
        place = f"{where}.param_groups.{i}"
        # Not what torch fills in, if the checkpoint is of an earlier version, nor what a schedule
        # adds, which the two need not share.
        known = {"params": ours["params"], **optimizer.defaults}
        needed = [k for k, v in known.items() if not isinstance(v, (bool, str, type(None)))]
        judge.dict(group, place, *needed)
        numbers = judge.list(group["params"], f"{place}.params")
        same = all(isinstance(n, int) for n in numbers) and numbers == ours["params"]
        judge.need(same, f"{place}.params", group["params"], "the numbers of this run's weights")
        for key in (ours.keys() & group.keys()) - {"params"}:
            _kind(judge, group[key], ours[key], f"{place}.{key}")
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for index, of_one in judge.dict(value["state"], f"{where}.state").items():
        place = f"{where}.state.{index}"
        known = isinstance(index, int) and 0 <= index < len(weights)
        judge.need(known, place, index, "of a weight's number")
        for name, one in judge.dict(of_one, place).items():
            if one is not None:
                _of_weight(judge, one, () if name == "step" else weights[index].shape,
                           f"{place}.{name}")  # fmt: skip


def _of_weight(judge, value, shape: tuple, where: str) -> None:
    if shape == () and not isinstance(value, Tensor):
        return judge.number(value, where)
    judge.need(isinstance(value, Tensor), where, value, "a tensor")
    dense = value.layout == torch.strided and value.is_floating_point() and value.shape == shape
    what = f"{tuple(shape)}, of finite numbers"
    judge.need(dense and bool(value.isfinite().all()), where, value, what)


def _kind(judge, value, ours, where: str) -> None:
    """Of the kind of a value that a setting has in this run."""
    if isinstance(ours, (bool, type(None))):
        judge.need(isinstance(value, (bool, type(None))), where, value, "true, false or nothing")
    elif isinstance(ours, (int, float)):
        judge.number(value, where)
    elif isinstance(ours, (list, tuple)):
        for i, one in enumerate(_as_many(judge, value, ours, where)):
            _kind(judge, one, ours[i], f"{where}.{i}")
    else:
        kind = dict if isinstance(ours, dict) else type(ours)
        judge.need(isinstance(value, kind), where, value, f"a {kind.__name__}")


def _own(judge, state: dict) -> None:
    """What the plugin adds; the host's checkpoints have none of it."""
    if (config := state.get("ressl_config")) is not None:
        _plain(judge, config, "ressl_config")
        settings = judge.dict(judge.dict(config, "ressl_config", "optimizer")["optimizer"],
                              "ressl_config.optimizer", "batch_size")  # fmt: skip
        judge.count(settings["batch_size"], "ressl_config.optimizer.batch_size")
        accumulated = config.get("accumulate_grad_batches", 1)
        judge.count(accumulated, "ressl_config.accumulate_grad_batches")
        fit = judge.dict(state["loops"]["fit_loop"].get("state_dict", {}), "fit_loop.state_dict")
        for i, loader in enumerate(fit.get("combined_loader", ())):
            if loader:
                place = f"combined_loader.{i}"
                for key in _LOADER:
                    judge.count(judge.dict(loader, place, *_LOADER, "finished")[key], place)
    if (states := state.get("ressl_rng")) is not None:
        there = len(judge.list(states, "ressl_rng")) > 0
        judge.need(there, "the length of ressl_rng", 0, "the number of processes")
        for i, one in enumerate(states):
            _alike(judge, one, rng_state(), f"ressl_rng.{i}")
            judge.need(not refused(one), f"ressl_rng.{i}", refused(one), "generators' states")
    collapse = judge.dict(state.get("callbacks", {}), "callbacks").get("CollapseMonitor")
    if collapse is not None:
        epoch = judge.dict(collapse, "CollapseMonitor", "collapsed_at")["collapsed_at"]
        if epoch is not None:
            judge.count(epoch, "CollapseMonitor.collapsed_at")
    if "ressl_skipped_steps" in state:
        judge.count(state["ressl_skipped_steps"], "ressl_skipped_steps")
    if (epoch := state.get("ressl_epoch")) is not None:
        judge.dict(epoch, "ressl_epoch")
        if epoch.get("bankless") is not None:
            judge.count(epoch["bankless"], "ressl_epoch.bankless")
        for means in judge.list(epoch.get("means") or [], "ressl_epoch.means"):
            _means(judge, means)


def _plain(judge, value, where: str) -> None:
    """What a YAML file can say: mappings by words, lists, text, numbers, true, false, nothing."""
    if isinstance(value, dict):
        for key, inner in value.items():
            judge.need(isinstance(key, str), where, key, "keys that are text")
            _plain(judge, inner, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            _plain(judge, inner, f"{where}.{i}")
    else:
        plain = value is None or isinstance(value, (str, bool, int, float))
        judge.need(plain, where, value, "text, a number, true, false or nothing")


def _means(judge, means) -> None:
    for group, pairs in judge.dict(means, "ressl_epoch.means").items():
        for name, pair in judge.dict(pairs, f"ressl_epoch.means.{group}").items():
            place = f"ressl_epoch.means.{group}.{name}"
            pair = judge.list(pair, place)
            judge.need(len(pair) == 2, place, pair, "a sum and its weight")
            judge.need(_is_scalar(pair[0]), place, pair[0], "a sum and its weight")
            if not isinstance(pair[1], Tensor):
                judge.count(pair[1], place)
            else:
                judge.need(_is_scalar(pair[1]), place, pair[1], "a sum and its weight")


def _is_scalar(value) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.shape == ()


def _alike(judge, value, ours, where: str) -> None:
    """Of the same types and shapes as this process's own."""
    if isinstance(ours, dict):
        for key, inner in ours.items():
            there = judge.dict(value, where, *ours)[key]
            if key != "cuda" or (there is not None and inner is not None):
                _alike(judge, there, inner, f"{where}.{key}")
    elif isinstance(ours, list):
        judge.need(len(judge.list(value, where)) == len(ours), where, value, "a list like ours")
        for i, inner in enumerate(ours):
            _alike(judge, value[i], inner, f"{where}.{i}")
    elif isinstance(ours, torch.Tensor):
        good = isinstance(value, Tensor) and value.shape == ours.shape and value.dtype == ours.dtype
        judge.need(good, where, value, "a generator's state")
    elif ours is None or isinstance(ours, (int, float)):
        if value is not None:
            judge.number(value, where)
    else:
        judge.need(value == ours, where, value, repr(ours))
