"""What a checkpoint must hold to be gone on from, judged before anything takes it for granted.

Its bytes may be sound and its content somebody else's. Keys of others are left to others.
"""

from __future__ import annotations

import math

import torch
from packaging.version import InvalidVersion, Version
from torch import Tensor

from ressl_plugin.utils.errors import CheckpointError
from ressl_plugin.utils.rng import rng_state

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
        _optimizer(judge, one, f"optimizer_states.{i}")
    for i, one in enumerate(judge.list(state["lr_schedulers"], "lr_schedulers")):
        found = judge.dict(one, f"lr_schedulers.{i}", "last_epoch")
        judge.count(found["last_epoch"], f"lr_schedulers.{i}.last_epoch")
    callbacks = judge.dict(state.get("callbacks", {}), "callbacks")
    for name, value in callbacks.items():
        judge.dict(value, f"callbacks.{name}", *["collapsed_at"] * (name == "CollapseMonitor"))
    _own(judge, state)


def check_optimizers(path, optimizers) -> None:
    """Judge what the optimizers have taken over, before a fused step reads beyond it.

    Raises:
        CheckpointError: a state without a value that others have, or of another shape.
    """
    judge = _Judge(path)
    for optimizer in optimizers:
        of = optimizer.state
        # a weight that never had a gradient has no state, and need not
        weights = [p for g in optimizer.param_groups for p in g["params"] if of.get(p)]
        names = {k for weight in weights for k, v in of[weight].items() if v is not None}
        for i, weight in enumerate(weights):
            for name in sorted(names, key=str):
                value, place = of[weight].get(name), f"optimizer_states.state.{i}.{name}"
                judge.need(value is not None, place, None, "there, as for other weights")
                fits = not isinstance(value, Tensor) or value.shape in (weight.shape, ())
                judge.need(fits, place, value, f"of shape {tuple(weight.shape)}")


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
            judge.list(inner, place)
        elif key in ("step", "zero_grad") or key.endswith("progress"):
            whole = ("optimizer",) if key == "optim_progress" else ("total", "current")
            _loops(judge, judge.dict(inner, place, *whole), place)
        elif key == "optimizer":
            _loops(judge, judge.dict(inner, place, "step", "zero_grad"), place)
        elif key in ("total", "current"):
            _loops(judge, judge.dict(inner, place, "ready", "completed"), place)
        else:
            _loops(judge, inner, place)


def _optimizer(judge, value, where: str) -> None:
    found = judge.dict(value, where, "state", "param_groups")
    for index, of_one in judge.dict(found["state"], f"{where}.state").items():
        place = f"{where}.state.{index}"
        judge.need(isinstance(index, int), place, index, "of a parameter's number")
        for name, one in judge.dict(of_one, place).items():
            good = one is None or isinstance(one, (Tensor, int, float))
            judge.need(good, f"{place}.{name}", one, "a tensor or a number")
    for i, group in enumerate(judge.list(found["param_groups"], f"{where}.param_groups")):
        place = f"{where}.param_groups.{i}"
        judge.dict(group, place, "params", "lr")
        for number in judge.list(group["params"], f"{place}.params"):
            judge.count(number, f"{place}.params")
        for name in ("lr", "initial_lr", "momentum", "dampening", "weight_decay"):
            if name in group:
                judge.number(group[name], f"{place}.{name}")


def _own(judge, state: dict) -> None:
    """What the plugin adds; the host's checkpoints have none of it."""
    if (config := state.get("ressl_config")) is not None:
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
        for i, one in enumerate(judge.list(states, "ressl_rng")):
            _alike(judge, one, rng_state(), f"ressl_rng.{i}")
    if "ressl_skipped_steps" in state:
        judge.count(state["ressl_skipped_steps"], "ressl_skipped_steps")
    if (epoch := state.get("ressl_epoch")) is not None:
        judge.dict(epoch, "ressl_epoch")
        if epoch.get("bankless") is not None:
            judge.count(epoch["bankless"], "ressl_epoch.bankless")
        for means in judge.list(epoch.get("means") or [], "ressl_epoch.means"):
            _means(judge, means)


def _means(judge, means) -> None:
    for group, pairs in judge.dict(means, "ressl_epoch.means").items():
        for name, pair in judge.dict(pairs, f"ressl_epoch.means.{group}").items():
            place = f"ressl_epoch.means.{group}.{name}"
            pair = judge.list(pair, place)
            judge.need(len(pair) == 2, place, pair, "a sum and its weight")
            judge.need(isinstance(pair[0], Tensor), place, pair[0], "a sum and its weight")
            if not isinstance(pair[1], Tensor):
                judge.number(pair[1], place)


def _alike(judge, value, ours, where: str) -> None:
    """Of the same types and shapes as this process's own."""
    if isinstance(ours, dict):
        for key, inner in ours.items():
            if key != "cuda":
                _alike(judge, judge.dict(value, where, *ours)[key], inner, f"{where}.{key}")
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
