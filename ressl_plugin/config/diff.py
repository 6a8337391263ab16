"""Configs as plain values, and in what two of them differ."""

from __future__ import annotations

from functools import cache

from omegaconf import Container, OmegaConf

from ressl_plugin.config import schema

# Where a run lies, what it reports and how it is watched: nothing of it reaches the weights.
NEUTRAL = (
    "run_dir", "name", "resume", "resume_force", "resume_from_checkpoint", "auto_resume", "wandb",
    "checkpoint", "knn_eval", "faults", "data.num_workers", "data.val_path", "data.check",
    "data.train_path", "data.download",  # what the data are is compared, not where (identity.py)
    "data.linear_area",
    "performance.log_every", "log_every_n_steps", "enable_progress_bar", "check_val_every_n_epoch",
    "limit_val_batches", "num_sanity_val_steps", "profile",
)  # fmt: skip


def plain_config(config) -> dict:
    """A config as nested plain values, interpolations resolved."""
    config = config if isinstance(config, Container) else OmegaConf.create(dict(config))
    return OmegaConf.to_container(config, resolve=True)


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
    from ressl_plugin.config.loading import defaults

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
