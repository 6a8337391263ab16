"""Fill a config in from the schema, which checks keys and types, and check its values."""

from __future__ import annotations

import inspect
import logging
from dataclasses import fields
from functools import cache

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import checks, schema
from ressl_plugin.config.kinds import nearest
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

# settings that solo-learn's own ressl.yaml carries although nothing reads them
DEAD_KEYS = ("base_tau_momentum", "final_tau_momentum", "momentum_classifier")
# arguments of Lightning's Trainer that a run sets itself
OWN_ARGUMENTS = (
    "logger", "callbacks", "plugins", "enable_checkpointing", "default_root_dir",
    "use_distributed_sampler", "barebones", "model_registry",
)  # fmt: skip


def known_keys(kind: str = "pretrain") -> list[str]:
    """All keys of the schema, dotted; for pretraining with those of Lightning's Trainer."""
    if kind == "linear":
        return [key for key, _ in schema.walk(schema.LinearConfig)]
    return [key for key, _ in schema.walk(schema.ReSSLConfig)] + _trainer_arguments()


@cache
def _trainer_arguments() -> list[str]:
    from lightning.pytorch import Trainer

    return [n for n in inspect.signature(Trainer.__init__).parameters if n != "self"]


@cache
def defaults(cls=schema.Config) -> DictConfig:
    """The schema of a config, not to be changed; to make it takes a while."""
    return OmegaConf.structured(cls)


def finish(cfg: DictConfig) -> DictConfig:
    """A complete config: every key checked for name and type, every default filled in.

    Raises:
        UserError: unknown key (with the nearest valid one), value of another type, missing
            mandatory key, values that contradict each other.
    """
    given = _plain(cfg)
    own = {f.name for f in fields(schema.Config)}
    extra = {k: given.pop(k) for k in list(given) if k not in own and k in _trainer_arguments()}
    for key in OWN_ARGUMENTS:
        if key in extra:
            raise UserError(f"config: {key}: every run sets this one itself; leave it out")
    _drop_dead_keys(given)
    ours = given.get("method", "ressl") == "ressl"
    full = _filled(given, schema.ReSSLConfig if ours else schema.Config)
    full.update(extra)
    checks.check(full)
    return full


def finish_linear(cfg: DictConfig) -> DictConfig:
    """A complete linear recipe, as `finish` makes a pretraining config.

    Only the optimizer is demanded: what else must be given may be left to the run.

    Raises:
        UserError: unknown key, value of another type, no optimizer, values that cannot work.
    """
    full = _filled(_plain(cfg), schema.LinearConfig, "linear", demanded="optimizer.")
    checks.check_common(full, schema.LinearConfig)
    return full


def fill_method(cfg: DictConfig) -> DictConfig:
    """`finish`, in place, for what the method itself reads of a config of the host's scripts."""
    nodes = {f.name for f in fields(schema.MethodConfig)}
    given = {name: value for name, value in _plain(cfg).items() if name in nodes and value}
    _drop_dead_keys(given)
    cfg.update(_filled(given, schema.MethodConfig))
    checks.check_method(cfg)
    return cfg


def _plain(cfg: DictConfig) -> dict:
    """Without interpolations, and without Hydra's own settings."""
    try:
        given = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {' '.join(str(error).split())}") from None
    given.pop("hydra", None)
    return given


def _filled(given: dict, cls, kind: str = "pretrain", demanded: str = "") -> DictConfig:
    """`given` over the defaults of a class of the schema: the one place where they meet.

    demanded: how the keys begin that have to be given where they have no default.
    """
    for key, default in defaults(cls).items_ex(resolve=False):
        for node, type_, name in ((DictConfig, dict, "mapping"), (ListConfig, list, "list")):
            if isinstance(default, node) and not isinstance(given.get(key, type_()), type_):
                switch = f"; {key}.enabled=false switches it off" if "enabled" in default else ""
                value = str(given[key])[:40]
                raise UserError(f"config: {key}={value}: a {name} is expected{switch}")
    data = given.get("data") or {}
    if data.get("path") is not None:  # it stands for two keys, and wins over those of the recipe
        data.update(train_path=data["path"], val_path=data["path"], path=None)
    try:
        full = OmegaConf.create(OmegaConf.to_container(OmegaConf.merge(defaults(cls), given)))
    except OmegaConfBaseException as error:
        raise UserError(_schema_error(error, given, kind)) from None
    missing = sorted(k for k in map(str, OmegaConf.missing_keys(full)) if k.startswith(demanded))
    if missing:
        raise UserError(f"config: {', '.join(missing)} must be given")
    return full


def _drop_dead_keys(given: dict) -> None:
    kwargs = given.get("method_kwargs")
    if not isinstance(kwargs, dict):  # the schema will say so
        return
    dead = [key for key in DEAD_KEYS if key in kwargs]
    if given.get("method", "ressl") in ("ressl", "ressl_host") and dead:
        log.warning("method_kwargs.%s: no effect; momentum.* is what counts", ", ".join(dead))
        for key in dead:
            del kwargs[key]


def _schema_error(error: OmegaConfBaseException, given: dict, kind: str) -> str:
    """One line of what OmegaConf says of a value or a key."""
    key = getattr(error, "full_key", None) or getattr(error, "key", None) or ""
    known = known_keys(kind)
    if key not in known and "not in" in str(error):
        return f"config: unknown key {' '.join(str(key).split())}{nearest(key, known)}"
    value = OmegaConf.select(OmegaConf.create(given), str(key), throw_on_missing=False)
    return f"config: {key}={str(value)[:80]!r}: {str(error).splitlines()[0]}"
