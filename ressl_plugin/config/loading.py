"""Read a config, check every key against the schema, fill in the defaults."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import includes, schema
from ressl_plugin.config.checks import (
    check,
    check_batchnorm,
    check_linear,
    check_momentum,
    check_ressl,
)
from ressl_plugin.config.settings import nearest
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

LONGEST, DEEPEST = 4096, 32  # characters and brackets of an override
RECIPES = Path(__file__).parents[1] / "recipes"
# nodes whose keys belong to somebody else: optimizers, backbones, other methods
OPEN_KEYS = ("optimizer.kwargs", "backbone.kwargs", "method_kwargs", "augmentations")
# settings that solo-learn's own ressl.yaml carries although nothing reads them
DEAD_KEYS = ("base_tau_momentum", "final_tau_momentum", "momentum_classifier")
# arguments of Lightning's Trainer that a run sets itself
OWN_ARGUMENTS = (
    "logger", "callbacks", "plugins", "enable_checkpointing", "default_root_dir",
    "use_distributed_sampler", "barebones", "model_registry",
)  # fmt: skip


def load(target: str, overrides: list[str] = (), kind: str = "pretrain") -> DictConfig:
    """Compose a YAML file, or a recipe by name, with Hydra overrides.

    Args:
        target: path of a YAML file, or `<dataset>/<recipe>` as `cifar/ressl`.
        overrides: Hydra's override grammar, `optimizer.lr=0.1`, `+trainer_arg=…`, `~key`.
        kind: whose keys and recipes, "pretrain" or "linear".

    Raises:
        UserError: no such file or recipe, a file that does not end in .yaml, a YAML mistake, an
            override of an unknown key or not in Hydra's grammar.
    """
    path = find(target, kind)
    for override in overrides:
        if (reason := ungrammatical(override)) is not None:
            raise UserError(f"{path}: {reason}")
    includes.check(path, overrides)
    overrides = [allow(o, path.parent, kind) for o in overrides]
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base="1.2"):
            cfg = compose(path.stem, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {_explain(error, kind)}") from None
    OmegaConf.set_struct(cfg, False)
    return cfg


def find(target: str, kind: str = "pretrain") -> Path:
    """The YAML file that `target` names: a path, or a recipe such as `digits/ressl`.

    Raises:
        UserError: neither is there, or the file does not end in .yaml.
    """
    for path in (Path(target), Path(f"{target}.yaml")):
        if os.path.isfile(path):  # False, too, for a name that cannot be
            if path.suffix != ".yaml":  # it would look for another file
                raise UserError(f"{path}: Hydra reads files that end in .yaml; rename it")
            return path
    dataset, _, name = target.partition("/")
    recipe = RECIPES / kind / dataset / f"{name or 'ressl'}.yaml"
    if os.path.isfile(recipe):
        return recipe
    known = recipes(kind)
    near = difflib.get_close_matches(target, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"config {target}: no such file and no such recipe{hint} (recipes: {', '.join(known)})"
    )


def ungrammatical(override: str) -> str | None:
    """One line about an override that Hydra cannot read, and how to quote it; None if it can."""
    error = _hydras_error(override)
    if error is None:
        return None
    # its lexer's message is the override itself, with a mark below
    reason = "" if "LexerNoViableAlt" in error else f" ({error})"
    key, equals, value = override.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    hint = "; check brackets and quotes"
    if equals and value[:1] not in ("[", "{", "'", '"') and _hydras_error(quoted) is None:
        hint = f"; quote the value: '{quoted}'"
    return f"override {override[:200]}: not in Hydra's grammar{reason}{hint}"


def _hydras_error(override: str) -> str | None:
    if len(override) > LONGEST:
        return f"more than {LONGEST} characters"
    if len(override.partition("=")[0]) > 255:  # which Hydra looks for as a folder
        return "more than 255 characters before the ="
    if max(map(override.count, "[{(")) > DEEPEST:
        return f"more than {DEEPEST} brackets"
    try:
        OverridesParser.create().parse_overrides([override])
    except HydraException as error:
        lines = [line for line in str(error).splitlines() if "hydra.cc" not in line]
        return " ".join(" ".join(lines).split())
    return None


def allow(override: str, folder: Path, kind: str = "pretrain") -> str:
    """`key=value` of a known key works whether or not the file has the key (Hydra's `++`).

    Config groups (folders beside the file) and anything with a prefix are left to Hydra.
    """
    key = override.split("=", 1)[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*", key) or "=" not in override:
        return override
    if os.path.isdir(folder / key):
        return override
    parents = {k for known in known_keys(kind) for k in (known, *_open_parents(known))}
    inside_open = any(key.startswith(f"{p}.") for p in OPEN_KEYS)
    return f"++{override}" if key in parents or inside_open else override


def _open_parents(known: str):
    parts = known.split(".")
    return (".".join(parts[:i]) for i in range(1, len(parts)))


def recipes(kind: str = "pretrain") -> list[str]:
    """Names of the recipes that come with the plugin."""
    found = (RECIPES / kind).glob("*/*.yaml")
    return sorted(str(path.relative_to(RECIPES / kind).with_suffix("")) for path in found)


def _explain(error: Exception, kind: str) -> str:
    """One line of a Hydra or OmegaConf error, with the nearest valid key when it is about one."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([\w.]+)'", text)
    return f"unknown key {unknown[1]}{_nearest(unknown[1], kind)}" if unknown else text


def _nearest(key: str, kind: str = "pretrain") -> str:
    return nearest(key, known_keys(kind))


def known_keys(kind: str = "pretrain") -> list[str]:
    """All keys of the schema, dotted; for pretraining with those of Lightning's Trainer."""
    if kind == "linear":
        return list(_walk(schema.LinearConfig))
    keys = list(_walk(schema.Config)) + list(_trainer_arguments())
    return keys + [f"method_kwargs.{f.name}" for f in fields(schema.ReSSLKwargs)]


def _walk(cls, prefix=""):
    for f in fields(cls):
        yield prefix + f.name
        node = getattr(schema, f.type, None) if isinstance(f.type, str) else f.type
        if is_dataclass(node):
            yield from _walk(node, f"{prefix}{f.name}.")


def _trainer_arguments() -> list[str]:
    from lightning.pytorch import Trainer

    return [n for n in inspect.signature(Trainer.__init__).parameters if n != "self"]


@cache
def defaults() -> DictConfig:
    """The schema of a pretraining config, not to be changed; to make it takes a while."""
    return OmegaConf.structured(schema.Config)


def finish(cfg: DictConfig) -> DictConfig:
    """A complete config: every key checked for name and type, every default filled in.

    Raises:
        UserError: unknown key (with the nearest valid one), value of another type, missing
            mandatory key, values that contradict each other.
    """
    cfg = _resolved(cfg)
    cfg.pop("hydra", None)
    own = {f.name for f in fields(schema.Config)}
    extra = {k: cfg.pop(k) for k in list(cfg) if k not in own and k in _trainer_arguments()}
    for key in OWN_ARGUMENTS:
        if key in extra:
            raise UserError(f"config: {key}: every run sets this one itself; leave it out")
    _drop_dead_keys(cfg)
    full = _filled(cfg, defaults())
    if full.method == "ressl":
        kwargs = OmegaConf.structured(schema.ReSSLKwargs)
        full.method_kwargs = _filled(full.method_kwargs, kwargs, "method_kwargs.")
    missing = sorted(str(k) for k in OmegaConf.missing_keys(full))
    if missing:
        raise UserError(f"config: {', '.join(missing)} must be given")
    full.update(extra)
    check(full)
    return full


def finish_linear(cfg: DictConfig) -> DictConfig:
    """A complete linear recipe, as `finish` makes a pretraining config.

    Only the optimizer is demanded: what else must be given may be left to the run.

    Raises:
        UserError: unknown key, value of another type, no optimizer, values that cannot work.
    """
    cfg = _resolved(cfg)
    cfg.pop("hydra", None)
    full = _filled(cfg, OmegaConf.structured(schema.LinearConfig), kind="linear")
    missing = sorted(k for k in OmegaConf.missing_keys(full) if k.startswith("optimizer."))
    if missing:
        raise UserError(f"config: {', '.join(missing)} must be given")
    check_linear(full)
    return full


def _resolved(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations.

    Raises:
        UserError: one that leads nowhere.
    """
    try:
        return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"config: {' '.join(str(error).split())}") from None


def _filled(cfg: DictConfig, defaults: DictConfig, prefix="", kind="pretrain") -> DictConfig:
    """`cfg` over the schema's defaults, as plain values.

    Raises:
        UserError: unknown key (with the nearest valid one), value of another type.
    """
    for key, default in defaults.items_ex(resolve=False):
        for kind_of_node, name in ((DictConfig, "mapping"), (ListConfig, "list")):
            wrong = key in cfg and not isinstance(cfg._get_node(key), kind_of_node)
            if isinstance(default, kind_of_node) and wrong:
                switch = f"; {key}.enabled=false switches it off" if "enabled" in default else ""
                raise UserError(
                    f"config: {prefix}{key}={str(cfg[key])[:40]}: a {name} is expected{switch}"
                )
    try:
        full = OmegaConf.merge(defaults, cfg)  # of a copy
        return OmegaConf.create(OmegaConf.to_container(full))
    except OmegaConfBaseException as error:
        raise UserError(_schema_error(error, cfg, prefix, kind)) from None


def fill_method(cfg: DictConfig) -> DictConfig:
    """The plugin's own defaults, into a config that the host's scripts have read already.

    Raises:
        UserError: as `finish`, for the nodes that the method itself reads.
    """
    nodes = {
        "backbone": schema.Backbone,
        "batchnorm": schema.BatchNorm,
        "momentum": schema.Momentum,
        "knn_eval": schema.KNN,
        "performance": schema.Performance,
        "faults": schema.Faults,
        "method_kwargs": schema.ReSSLKwargs,
    }
    _drop_dead_keys(cfg)
    for name, node in nodes.items():
        given = OmegaConf.create({name: cfg.get(name) or {}})
        full = _filled(given, OmegaConf.create({name: OmegaConf.structured(node)}))[name]
        missing = sorted(OmegaConf.missing_keys(full))
        if missing:
            raise UserError(f"config: {name}.{', '.join(missing)} must be given")
        cfg[name] = OmegaConf.to_container(full)
    check_momentum(cfg)
    check_batchnorm(cfg)
    check_ressl(cfg.method_kwargs)
    return cfg


def _drop_dead_keys(cfg: DictConfig) -> None:
    given = cfg.get("method_kwargs")
    if not isinstance(given, DictConfig):  # the schema will say so
        return
    dead = [key for key in DEAD_KEYS if key in given]
    if cfg.get("method", "ressl") in ("ressl", "ressl_host") and dead:
        log.warning("method_kwargs.%s: no effect; momentum.* is what counts", ", ".join(dead))
        for key in dead:
            del cfg.method_kwargs[key]


def _schema_error(error: OmegaConfBaseException, cfg: DictConfig, prefix: str, kind: str) -> str:
    """One line of what OmegaConf says of a value or a key."""
    key = f"{prefix}{getattr(error, 'full_key', None) or getattr(error, 'key', None) or ''}"
    known = known_keys(kind)
    if key not in known and "not in" in str(error):
        return f"config: unknown key {' '.join(key.split())}{_nearest(key, kind)}"
    value = OmegaConf.select(cfg, key.removeprefix(prefix), throw_on_missing=False)
    return f"config: {key}={str(value)[:80]!r}: {str(error).splitlines()[0]}"
