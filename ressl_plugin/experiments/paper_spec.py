"""What `ressl paper` is to train and evaluate: a YAML file a table, read and checked as a whole.

The files are in scripts/ablation and scripts/paper:

    table: 4                      of the paper, or
    figure: 2                     of the paper, 2 or 3
    evaluate: {linear: {}}        evaluators and their settings, those of EVALUATORS
    operations: {name: override}  short names for overrides, used in `cells`
    groups:                       lists of
      - recipe: cifar/ressl       with
        words: [key=value]        or operations, for the whole group, and one of
        sweep: [key=a,b]          every combination (Hydra's grammar, as `ressl pretrain -m`)
        cells: {name: [words]}    named ones
        methods: [simclr]         by scripts/benchmark/methods.yaml; random: the untrained network
        methods: {simclr: row}    with the rows that they have in the paper's table
        row: weak                 that of all the group's cells, where it is not told by the table
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from ressl_plugin import config
from ressl_plugin.config import yaml_files
from ressl_plugin.config.kinds import nearest
from ressl_plugin.evaluate.finetune import labels_named
from ressl_plugin.evaluate.lowshot import count_named
from ressl_plugin.experiments import sweep
from ressl_plugin.experiments.paper_numbers import tables
from ressl_plugin.utils.errors import UserError

FIGURES = (2, 3)
KINDS = ("sweep", "cells", "methods")  # of which a group has one


@contextmanager
def within(place):
    """Put where it is before the message of a mistake: a file, a key, a cell.

    Raises:
        UserError: what the block raised, with `place` before it.
    """
    try:
        yield
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from None


def known() -> dict[str, Path]:
    """The tables and figures that there is a file for, by number, the tables first."""
    names = [*(f"table{n}" for n in tables()), *(f"figure{n}" for n in FIGURES)]
    files = [config.RECIPES / f / f"{name}.yaml" for name in names for f in ("ablation", "paper")]
    return {file.stem: file for file in files if file.is_file()}


def find(name: str) -> Path:
    """The YAML file of a table or figure, by its name or its path.

    Raises:
        UserError: neither is there.
    """
    path = known().get(name) or Path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such table or figure; there are {', '.join(known())}")
    return path


def read(name: str) -> dict:
    """The file of a table or figure as plain data, every key and every type in it checked.

    In what is returned, evaluators without settings have {}, and so has a file without operations.

    Raises:
        UserError: no such file; in it broken YAML, a key that is unknown or missing, a value of
            another type, an unknown table or evaluator, a word that is no override.
    """
    path = find(name)
    spec = yaml_files.read(path, words=False)
    if not {"groups", "evaluate"} <= spec.keys():
        raise UserError(f"{path}: not the description of a table: `groups` and `evaluate` needed")
    with within(path):
        _only(spec, ("table", "figure", "evaluate", "operations", "groups"))
        if spec.get("figure", 2) not in FIGURES:
            raise UserError(f"figure: {spec['figure']!r}: must be 2 or 3")
        if "table" in spec and (type(spec["table"]) is not int or spec["table"] not in tables()):
            raise UserError(
                f"table: {spec['table']!r}: must be a number from 1 to {max(tables())}; "
                "a figure has none, leave it out"
            )
        with within("evaluate"):
            spec["evaluate"] = _evaluators(spec["evaluate"])
        spec["operations"] = _operations(spec.get("operations"))
        with within("groups"):
            if not _list(spec["groups"], "{recipe: NAME, ...}"):
                raise UserError("at least one is needed")
        for number, group in enumerate(spec["groups"], 1):
            with within(f"group {number}"):
                _check_group(group, spec["operations"])
    return spec


# --- the evaluators and their settings ----------------------------------------------------------


def _positive(value) -> None:
    if type(value) is not int or value < 1:
        raise UserError(f"{value!r}: must be a whole number, at least 1")


def _each(check):
    """A check of a list from one of its items, as the command line would take it."""

    def check_list(values) -> None:
        if not isinstance(values, list) or not values:
            raise UserError(f"{values!r}: must be a list, not empty")
        for value in values:
            check(str(value))

    return check_list


EVALUATORS = {  # name -> setting -> what raises UserError if its value cannot work
    "linear": {},
    "lowshot": {"per_class": _each(count_named), "draws": _positive},
    "finetune": {"labels": _each(labels_named), "epochs": _positive},
    "figures": {},
}


def _evaluators(given) -> dict[str, dict]:
    """`evaluate` with {} for evaluators that stand there without settings (`linear:`)."""
    given = {k: {} if v is None else v for k, v in _mapping(given, "evaluator: settings").items()}
    _only(given, EVALUATORS)
    for name, settings in given.items():
        with within(name):
            wanted = EVALUATORS[name]
            _only(_mapping(settings, "setting: value"), wanted)
            missing = [key for key in wanted if key not in settings]
            if missing:
                raise UserError(f"{' and '.join(missing)} needed")
            for key, check in wanted.items():
                with within(key):
                    check(settings[key])
    return given


# --- types and keys -----------------------------------------------------------------------------


def _mapping(value, what: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{value!r}: must be a mapping, {{{what}}}")
    for key in value:
        if not isinstance(key, str):  # `no:` and `1:` are other things than text in YAML
            raise UserError(f"{key!r}: a name is text; put it in quotes")
    return value


def _is_text(value) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _only(given: dict, known) -> None:
    for key in given:
        if key not in known:
            hint = nearest(key, known) or f"; known: {', '.join(known) or 'none'}"
            raise UserError(f"unknown key {key}{hint}")


def _list(values, what: str) -> list:
    if not isinstance(values, list):
        raise UserError(f"{values!r}: must be a list, [{what}]")
    return values


def _override(word, operations=()) -> None:
    """A word must be an override or an operation; Hydra's message would not name this file."""
    if not isinstance(word, str):  # `key: value` in a list is a mapping to YAML
        raise UserError(f"{word!r}: not key=value")
    if word in operations:
        return
    if "=" not in word and not word.startswith("~"):
        names = f", and none of the operations {', '.join(operations)}" if operations else ""
        raise UserError(f"{word}: not key=value{names}")
    sweep.combinations([word])


def _operations(given) -> dict[str, str]:
    given = {} if given is None else given
    with within("operations"):
        for name, word in _mapping(given, "name: override").items():
            with within(name):
                _override(word)
    return given


def _check_group(group, operations: dict) -> None:
    _only(_mapping(group, "recipe: NAME, ..."), ("recipe", "words", "row", *KINDS))
    if not isinstance(group.get("recipe"), str):
        raise UserError(
            f"recipe: {group.get('recipe')!r}: must be the name of a recipe, as cifar/ressl"
        )
    if not _is_text(group.get("row", "a")):
        raise UserError(f"row: {group['row']!r}: must be a text, as weak")
    with within("words"):
        for word in _list(group.get("words", []), "key=value"):
            _override(word, operations)
    kinds = [kind for kind in KINDS if kind in group]
    if len(kinds) != 1:
        raise UserError(f"{' and '.join(kinds) or 'no cells'}: one of {', '.join(KINDS)} needed")
    (kind,) = kinds
    with within(kind):
        if group[kind] in (None, [], {}):
            raise UserError("at least one is needed")
        if kind == "sweep":
            for word in _list(group[kind], "key=a,b"):
                _override(word)
        elif kind == "methods":
            named = isinstance(group[kind], dict)
            for method in group[kind] if named else _list(group[kind], "method"):
                if not isinstance(method, str):
                    raise UserError(f"{method!r}: must be the name of a method, as simclr")
                if named and not _is_text(group[kind][method]):
                    raise UserError(f"{method}: {group[kind][method]!r}: must be the name of a row")
        else:
            _check_cells(_mapping(group[kind], "name: [words]"), operations)


def _check_cells(cells: dict, operations: dict) -> None:
    for name, words in cells.items():
        with within(name):
            if not _is_text(name) or name != Path(name).name or name == "..":
                raise UserError("the name of a cell is that of its folder, no path")
            for word in _list(words, "words"):
                _override(word, operations)
