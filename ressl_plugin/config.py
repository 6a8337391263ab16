"""Read a config, check every key against the schema, fill in the defaults."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin import schema
from ressl_plugin.errors import UserError

log = logging.getLogger(__name__)

RECIPES = Path(__file__).parent / "recipes"
# nodes whose keys belong to somebody else: optimizers, backbones, other methods
OPEN_KEYS = ("optimizer.kwargs", "backbone.kwargs", "method_kwargs", "augmentations")
# settings that solo-learn's own ressl.yaml carries although nothing reads them
DEAD_KEYS = ("base_tau_momentum", "final_tau_momentum", "momentum_classifier")
# arguments of Lightning's Trainer that a run sets itself
OWN_ARGUMENTS = (
    "logger", "callbacks", "plugins", "enable_checkpointing", "default_root_dir",
    "use_distributed_sampler",
)  # fmt: skip
PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
    "32", "16", "bf16", "64", 32, 16, 64,
)  # fmt: skip


def load(target: str, overrides: list[str] = (), kind: str = "pretrain") -> DictConfig:
    """Compose a YAML file, or a recipe by name, with Hydra overrides.

    Args:
        target: path of a YAML file, or `<dataset>/<recipe>` as `cifar/ressl`.
        overrides: Hydra's override grammar, `optimizer.lr=0.1`, `+trainer_arg=…`, `~key`.
        kind: whose keys and recipes, "pretrain" or "linear".

    Raises:
        UserError: no such file or recipe, a YAML mistake, an override of an unknown key.
    """
    path = find(target, kind)
    overrides = [allow(o, path.parent, kind) for o in overrides]
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base="1.2"):
            cfg = compose(path.stem, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: {_explain(error, kind)}") from None
    except Exception as error:
        if type(error).__module__.startswith("yaml"):
            raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        raise
    OmegaConf.set_struct(cfg, False)
    return cfg


def find(target: str, kind: str = "pretrain") -> Path:
    """The YAML file that `target` names: a path, or a recipe such as `digits/ressl`."""
    for path in (Path(target), Path(f"{target}.yaml")):
        if path.is_file():
            return path
    dataset, _, name = target.partition("/")
    recipe = RECIPES / kind / dataset / f"{name or 'ressl'}.yaml"
    if recipe.is_file():
        return recipe
    known = recipes(kind)
    near = difflib.get_close_matches(target, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"config {target}: no such file and no such recipe{hint} (recipes: {', '.join(known)})"
    )


def allow(override: str, folder: Path, kind: str = "pretrain") -> str:
    """`key=value` of a known key works whether or not the file has the key (Hydra's `++`).

    Config groups (folders beside the file) and anything with a prefix are left to Hydra.
    """
    key = override.split("=", 1)[0]
    if not re.fullmatch(r"[A-Za-z_][\w.]*", key) or "=" not in override:
        return override
    if (folder / key).is_dir():
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
    near = difflib.get_close_matches(key, known_keys(kind), 1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


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


def finish(cfg: DictConfig) -> DictConfig:
    """A complete config: every key checked for name and type, every default filled in.

    Raises:
        UserError: unknown key (with the nearest valid one), value of another type, missing
            mandatory key, values that contradict each other.
    """
    try:
        cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException as error:  # ${...} that leads nowhere
        raise UserError(f"config: {' '.join(str(error).split())}") from None
    cfg.pop("hydra", None)
    own = {f.name for f in fields(schema.Config)}
    extra = {k: cfg.pop(k) for k in list(cfg) if k not in own and k in _trainer_arguments()}
    for key in OWN_ARGUMENTS:
        if key in extra:
            raise UserError(f"config: {key}: every run sets this one itself; leave it out")
    _drop_dead_keys(cfg)
    try:
        full = OmegaConf.merge(OmegaConf.structured(schema.Config), cfg)
        if full.method == "ressl":
            kwargs = OmegaConf.merge(OmegaConf.structured(schema.ReSSLKwargs), full.method_kwargs)
            full.method_kwargs = OmegaConf.to_container(kwargs)
        full = OmegaConf.create(OmegaConf.to_container(full))
    except OmegaConfBaseException as error:
        raise UserError(_schema_error(error, cfg)) from None
    missing = sorted(str(k) for k in OmegaConf.missing_keys(full))
    if missing:
        raise UserError(f"config: {', '.join(missing)} must be given")
    full.update(extra)
    check(full)
    return full


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
        given = cfg.get(name) or {}
        try:
            full = OmegaConf.merge(OmegaConf.structured(node), given)
        except OmegaConfBaseException as error:
            key = f"{name}.{getattr(error, 'key', None)}"
            raise UserError(_schema_error(error, cfg, key)) from None
        missing = sorted(OmegaConf.missing_keys(full))
        if missing:
            raise UserError(f"config: {name}.{', '.join(missing)} must be given")
        cfg[name] = OmegaConf.to_container(full)
    check_momentum(cfg)
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


def _schema_error(error: OmegaConfBaseException, cfg: DictConfig, key: str | None = None) -> str:
    key = key or getattr(error, "full_key", None) or getattr(error, "key", None) or "?"
    if getattr(error, "object_type", None) is schema.ReSSLKwargs:
        key = f"method_kwargs.{key}"
    if "not in" in str(error) and key not in known_keys():
        return f"config: unknown key {' '.join(str(key).split())}{_nearest(str(key))}"
    value = OmegaConf.select(cfg, str(key), throw_on_missing=False)
    return f"config: {key}={value!r}: {str(error).splitlines()[0]}"


def _one_of(cfg, key, *choices):
    value = OmegaConf.select(cfg, key)
    if value not in choices:
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"config: {key}={value!r}: one of {', '.join(map(str, choices))}{hint}")


def _at_least(cfg, key, least, strictly=False):
    value = OmegaConf.select(cfg, key)
    if value is not None and not (value > least if strictly else value >= least):
        raise UserError(f"config: {key}={value}: must be {'>' if strictly else '>='} {least}")


def check(cfg: DictConfig) -> None:
    """Values that each have the right type but cannot work."""
    _one_of(cfg, "data.backend", "auto", "host", "dali", "batched")
    _one_of(cfg, "data.format", "image_folder", "dali", "h5", "npz")
    _one_of(cfg, "backbone.stem", "auto", "paper", "solo", "imagenet")
    _one_of(cfg, "batchnorm.mode", "group", "shuffle", "sync")
    _one_of(cfg, "knn_eval.distance_func", "cosine", "euclidean")
    _one_of(cfg, "scheduler.interval", "step", "epoch")
    _one_of(cfg, "scheduler.name", "warmup_cosine", "step", "none")
    _one_of(cfg, "optimizer.name", "sgd", "lars", "adam", "adamw")
    _one_of(cfg, "faults.non_finite", "stop", "skip")
    _one_of(cfg, "dali.device", "gpu", "cpu")
    if cfg.precision is not None:  # Lightning takes that for 32-true
        _one_of(cfg, "precision", *PRECISIONS)
    if not (cfg.resume is None or isinstance(cfg.resume, (bool, str, Path))):
        raise UserError(f"config: resume={cfg.resume!r}: true, false, or the path of a run")
    for key in ("optimizer.batch_size", "max_epochs", "knn_eval.k", "knn_eval.every", "num_nodes",
                "accumulate_grad_batches", "performance.log_every", "checkpoint.frequency"):
        _at_least(cfg, key, 1)
    for key in ("optimizer.lr", "optimizer.weight_decay", "scheduler.warmup_epochs", "seed",
                "batchnorm.groups", "data.num_workers", "checkpoint.every_n_steps"):
        _at_least(cfg, key, 0)
    _at_least(cfg, "data.image_size", 1)
    check_momentum(cfg)
    if cfg.method == "ressl":
        check_ressl(cfg.method_kwargs)


def check_momentum(cfg: DictConfig) -> None:
    """0 <= base_tau <= final_tau <= 1."""
    base, final = cfg.momentum.base_tau, cfg.momentum.final_tau
    if not 0 <= base <= final <= 1:
        raise UserError(
            f"config: momentum.base_tau={base}, momentum.final_tau={final}: "
            "0 <= base_tau <= final_tau <= 1 is needed (equal: constant m)"
        )


def check_ressl(kwargs: DictConfig) -> None:
    """Limits of the method's own settings (tau_t < tau_s: Section 3 of the paper)."""
    for key in ("proj_hidden_dim", "proj_output_dim", "queue_size", "pred_hidden_dim"):
        if kwargs[key] < 1:
            raise UserError(f"config: method_kwargs.{key}={kwargs[key]}: must be >= 1")
    tau_s, tau_t = kwargs.temperature_q, kwargs.temperature_k
    if not 0 < tau_t < tau_s:
        raise UserError(
            f"config: method_kwargs.temperature_k={tau_t} (tau_t) must be > 0 and below "
            f"temperature_q={tau_s} (tau_s): the target relation is the sharper one"
        )
    if kwargs.infonce_epochs < 0 or kwargs.infonce_temperature <= 0:
        raise UserError(
            "config: method_kwargs.infonce_epochs must be >= 0 and infonce_temperature > 0, "
            f"got {kwargs.infonce_epochs} and {kwargs.infonce_temperature}"
        )
