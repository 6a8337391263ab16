"""What `ressl paper` is to train and evaluate: a YAML file a table, read and checked as a whole.

The files are in scripts/ablation and scripts/paper:

    table: 4                      of the paper, or
    figure: 2                     of the paper, 2 or 3
    evaluate: {linear: {}}        evaluators and their settings, those of EVALUATORS
    operations: {name: override}  short names for overrides, used in `words` and `cells`
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
from ressl_plugin.config.kinds import Kind, nearest, number, one_of, whole
from ressl_plugin.evaluate.finetune import labels_named
from ressl_plugin.evaluate.lowshot import count_named
from ressl_plugin.experiments.paper_numbers import tables
from ressl_plugin.run.structure import TEXT, fault
from ressl_plugin.utils.errors import UserError

FIGURES = (2, 3)
KINDS = ("sweep", "cells", "methods")  # of which a group has one
NAMES = Kind(
    "a list of names, or names with their rows",
    lambda value: not fault(value, [TEXT]) or not fault(value, {"*": TEXT}),
)
EVALUATORS = {
    "linear?": {},
    "lowshot?": {"per_class": [number() | TEXT], "draws": whole(1)},
    "finetune?": {"labels": [number() | TEXT], "epochs": whole(1)},
}
SPEC = {
    "table?": one_of(*tables()),
    "figure?": one_of(*FIGURES),
    "evaluate": EVALUATORS,
    "operations?": {"*": TEXT},
    "groups": [
        {
            "recipe": TEXT,
            "words?": [TEXT],
            "row?": TEXT,
            "sweep?": [TEXT],
            "cells?": {"*": [TEXT]},
            "methods?": NAMES,
        }
    ],
}


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

    Raises:
        UserError: no such file; in it broken YAML, a key that is unknown or missing, a value of
            another type, an unknown table or evaluator.
    """
    path = find(name)
    spec = yaml_files.read(path, words=False)
    with within(path):
        _only_known(spec, SPEC)
        if wrong := fault(spec, SPEC):
            raise UserError(wrong)
        for count in spec["evaluate"].get("lowshot", {}).get("per_class", ()):
            count_named(str(count))
        for labels in spec["evaluate"].get("finetune", {}).get("labels", ()):
            labels_named(str(labels))
        if not spec["groups"]:
            raise UserError("groups: at least one is needed")
        for place, group in enumerate(spec["groups"], 1):
            with within(f"group {place}"):
                _check_cells(group)
    return spec


def _only_known(value, structure) -> None:
    """`fault` leaves keys alone that it does not know: here they are slips of the pen."""
    if isinstance(structure, list) and isinstance(value, list):
        for one in value:
            _only_known(one, structure[0])
    elif isinstance(structure, dict) and isinstance(value, dict) and "*" not in structure:
        known = {key.rstrip("?"): inner for key, inner in structure.items()}
        for key, inner in value.items():
            if key not in known:
                hint = nearest(key, known) or f"; known: {', '.join(known) or 'none'}"
                raise UserError(f"unknown key {key}{hint}")
            _only_known(inner, known[key])


def _check_cells(group: dict) -> None:
    kinds = [kind for kind in KINDS if kind in group]
    if len(kinds) != 1:
        raise UserError(f"{' and '.join(kinds) or 'no cells'}: one of {', '.join(KINDS)} needed")
    if not group[kinds[0]]:
        raise UserError(f"{kinds[0]}: at least one is needed")
    for name in group.get("cells", ()):
        if name != Path(name).name or name == "..":
            raise UserError(f"cells: {name}: the name of a cell is that of its folder, no path")
