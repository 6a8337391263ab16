"""Read a config: a file or a recipe, composed by Hydra with overrides."""

from __future__ import annotations

import os
import re
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import yaml_files
from ressl_plugin.config.filling import known_keys
from ressl_plugin.config.kinds import nearest
from ressl_plugin.utils.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
# nodes whose keys belong to somebody else: optimizers, backbones, other methods
OPEN_KEYS = ("optimizer.kwargs", "backbone.kwargs", "method_kwargs", "augmentations")


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
    yaml_files.read(path)
    given = overrides
    overrides = [allow(o, path.parent, kind) for o in overrides]
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base="1.2"):
            cfg = compose(path.stem, overrides)
    except RecursionError:
        raise UserError(f"{path}: it includes itself, by its `defaults`") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: {_explain(error, kind)}") from None
    OmegaConf.set_struct(cfg, False)
    refuse_two_places(cfg, given)
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
    raise UserError(
        f"config {target}: no such file and no such recipe{nearest(target, known)} "
        f"(recipes: {', '.join(known)})"
    )


def refuse_two_places(cfg: DictConfig, overrides: list[str]) -> None:
    """Refuse a config that has `data.path`, which stands for both paths and wins, beside an
    override of one of them."""
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    other = keys & {"data.train_path", "data.val_path"}
    if other and (path := OmegaConf.select(cfg, "data.path")) is not None:
        raise UserError(
            f"data.path={path} and {min(other)}: the first stands for both paths; give one"
        )


def ungrammatical(override: str) -> str | None:
    """One line about an override that Hydra cannot read, and how to quote it; None if it can."""
    error = _hydras_error(override)
    if error is None:
        return None
    # its lexer's message is the override itself, with a mark below
    reason = "" if "LexerNoViableAlt" in error else f" ({error})"
    key, equals, value = override.partition("=")
    hint = "; check brackets and quotes"
    again = quoted(key, value)
    if equals and value[:1] not in ("[", "{", "'", '"') and _hydras_error(again) is None:
        hint = f"; quote the value: '{again}'"
    return f"override {override[:200]}: not in Hydra's grammar{reason}{hint}"


def quoted(key: str, value) -> str:
    """An override with a value that is a string, whatever is in it."""
    # to Hydra a backslash is one, but before a quote
    double = lambda match: 2 * match[1] + ('\\"' if match[2] else "")
    escaped = re.sub(r'(\\*)("|$)', double, str(value))
    return f'{key}="{escaped}"'


def _hydras_error(override: str) -> str | None:
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
    ours = any(known == key or known.startswith(f"{key}.") for known in known_keys(kind))
    inside_open = any(key.startswith(f"{p}.") for p in OPEN_KEYS)
    return f"++{override}" if ours or inside_open else override


def recipes(kind: str = "pretrain") -> list[str]:
    """Names of the recipes that come with the plugin."""
    found = (RECIPES / kind).glob("*/*.yaml")
    return sorted(str(path.relative_to(RECIPES / kind).with_suffix("")) for path in found)


def _explain(error: Exception, kind: str) -> str:
    """One line of a Hydra or OmegaConf error, with the nearest valid key when it is about one."""
    text = " ".join(str(error).split())
    unknown = re.search(r"Could not override '([\w.]+)'", text)
    return f"unknown key {unknown[1]}{nearest(unknown[1], known_keys(kind))}" if unknown else text
