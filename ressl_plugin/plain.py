"""States and configs as tensors and plain values: what loads without pickle and compares."""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum
from functools import cache
from pathlib import Path

import numpy as np
import torch
from omegaconf import Container, OmegaConf

from ressl_plugin import schema
from ressl_plugin.errors import CheckpointError

# Where a run lies, what it reports and how it is watched: nothing of it reaches the weights.
NEUTRAL = (
    "run_dir", "name", "resume", "resume_force", "resume_from_checkpoint", "auto_resume", "wandb",
    "checkpoint", "knn_eval", "faults", "data.num_workers", "data.val_path", "data.check",
    "data.train_path", "data.download",  # what the data are is compared, not where (identity.py)
    "data.linear_area",
    "performance.log_every", "log_every_n_steps", "enable_progress_bar", "check_val_every_n_epoch",
    "limit_val_batches", "num_sanity_val_steps", "profile",
)  # fmt: skip


def to_plain(value, where="checkpoint"):
    """Tensors and plain values of ``value``: what ``weights_only`` reads back.

    Raises:
        CheckpointError: something else, named by its place.
    """
    if value is None or isinstance(value, (torch.Tensor, bool, int, float, str, bytes)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, (torch.Size, torch.dtype, torch.device, Counter)):
        return value
    if isinstance(value, Container):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, OrderedDict) and all(isinstance(t, torch.Tensor) for t in value.values()):
        return value  # a state dict: it carries its modules' versions as an attribute
    if isinstance(value, dict):
        return {to_plain(k, where): to_plain(v, f"{where}[{k!r}]") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [to_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, Enum):
        return to_plain(value.value, where)
    if isinstance(value, Path):
        return str(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise CheckpointError(f"{where} is a {kind}: a checkpoint holds tensors and plain values only")


def plain_config(config) -> dict:
    """A config as nested plain values, interpolations resolved."""
    if isinstance(config, Container):
        return OmegaConf.to_container(config, resolve=True)
    return to_plain(dict(config), "config")


def config_differences(saved, now) -> list[str]:
    """Settings that differ and bear on training, as ``key: saved -> now``, sorted.

    Left out is what cannot change a weight (`NEUTRAL`: places, reports, workers). `max_epochs` is
    not: the schedule follows from it. A key that an earlier version did not have had its default.
    """
    old, new = decisive(saved), decisive(now)
    for side, other in ((old, new), (new, old)):
        side.update({k: v for k, v in _defaults().items() if k in other and k not in side})
    absent = object()
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]


def decisive(config) -> dict:
    """The settings that bear on training (all but `NEUTRAL`): dotted key -> value."""
    flat = dict(_flat(plain_config(config)))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == n or key.startswith(f"{n}.") for n in NEUTRAL)
    }


@cache
def _defaults() -> dict:
    from ressl_plugin.config import defaults  # which needs this package's checkpoints

    whole = OmegaConf.to_container(defaults())
    kwargs = OmegaConf.to_container(OmegaConf.structured(schema.ReSSLKwargs))
    flat = [*_flat(whole), *_flat({"method_kwargs": kwargs})]
    return {key: value for key, value in flat if value != schema.MISSING}


def _flat(value, prefix=""):
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
