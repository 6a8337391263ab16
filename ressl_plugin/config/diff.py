"""Configs as plain values, and in what two of them differ."""

from __future__ import annotations

from functools import cache

from omegaconf import Container, OmegaConf

from ressl_plugin.config import schema
from ressl_plugin.config.filling import defaults
from ressl_plugin.config.settings import WATCHING

# Where a run lies, what it reports and how it is watched: nothing of it reaches the weights.
NEUTRAL = (
    *(key for key, field in schema.walk(schema.Config) if not field.metadata.get("trains", True)),
    *WATCHING,
)


def plain_config(config) -> dict:
    """A config as nested plain values, interpolations resolved."""
    config = config if isinstance(config, Container) else OmegaConf.create(dict(config))
    return OmegaConf.to_container(config, resolve=True)


# Where things lie on a machine, and whose account reports are sent to
_PLACES = {
    "": ("run_dir", "resume", "resume_from_checkpoint", "wandb"),
    "data": ("path", "train_path", "val_path"),
}
# How a batch is spread over processes
_SPREAD = ("optimizer.batch_size", "batchnorm.groups", "devices", "num_nodes", "strategy")


def without_places(config) -> dict:
    """A plain config as it may be handed to others: no path and no account of this machine."""
    plain = plain_config(config)
    for section, keys in _PLACES.items():
        node = plain.get(section) or {} if section else plain
        for key in keys:
            node.pop(key, None)
    return plain


def config_differences(saved, now) -> list[str]:
    """Settings that differ and bear on training, as ``key: saved -> now``, sorted.

    Left out is what cannot change a weight (`NEUTRAL`: places, reports, workers). `max_epochs` is
    not: the schedule follows from it. A key that an earlier version did not have had its default.
    Nor is another number of processes that share the same batch and groups one.
    """
    old, new = decisive(saved), decisive(now)
    for side, other in ((old, new), (new, old)):
        side.update({k: v for k, v in _defaults().items() if k in other and k not in side})
        if "devices" in side:  # which ones they are is nothing to the weights
            side["devices"] = _count(side["devices"])
        if side.get("strategy") == "auto":  # of several processes it means that (utils/devices.py)
            side["strategy"] = "ddp"
    absent = object()
    spread = _SPREAD if _together(old) == _together(new) is not None else ()
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent) and key not in spread
    ]


def _together(flat: dict) -> tuple[int, int] | None:
    """Images and batch-norm groups of a step on all processes: where these are alike, and images do
    not change places within a process, another number of processes computes the same."""
    devices, groups = _count(flat.get("devices")), flat.get("batchnorm.groups") or 1
    permuted = flat.get("batchnorm.permute") and groups > 1
    said = isinstance(devices, int) and "optimizer.batch_size" in flat
    if not said or permuted or flat.get("batchnorm.mode") == "shuffle":
        return None
    ranks = devices * (flat.get("num_nodes") or 1)
    return flat["optimizer.batch_size"] * ranks, groups * ranks


def _count(devices):
    return len(devices) if isinstance(devices, list) else devices


def decisive(config) -> dict:
    """The settings that bear on training (all but `NEUTRAL`): dotted key -> value."""
    flat = dict(_flat(plain_config(config)))
    return {
        key: value
        for key, value in flat.items()
        if not any(key == n or key.startswith(f"{n}.") for n in NEUTRAL)
    }


def chosen(config) -> dict:
    """What of `decisive` is not the plugin's default, in the config's nesting; no path, either."""
    default, found = _defaults(), OmegaConf.create()
    for key, value in decisive(without_places(config)).items():
        if key not in default or default[key] != value:
            OmegaConf.update(found, key, value)
    return OmegaConf.to_container(found)


@cache
def _defaults() -> dict:
    whole = OmegaConf.to_container(defaults(schema.ReSSLConfig))
    return {key: value for key, value in _flat(whole) if value != schema.MISSING}


def _flat(value, prefix=""):
    if isinstance(value, dict) and (value or not prefix):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
