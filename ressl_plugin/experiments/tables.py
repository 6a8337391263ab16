"""Tables made from results files, with the paper's numbers beside ours where it has them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import yaml_files
from ressl_plugin.config.diff import decisive
from ressl_plugin.data import identity
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments import paper_cells
from ressl_plugin.experiments.paper_numbers import GRID, TABLES
from ressl_plugin.run import results
from ressl_plugin.utils.devices import device_count
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number, render

log = logging.getLogger(__name__)

METRICS = ("top1", "mAP")
# of the paper's own rows of other methods, ours are something else
OTHERS = (
    "Rows other than ReSSL's: solo-learn's methods with the settings of "
    "scripts/benchmark/methods.yaml, not their authors'; MoCo is its two-sided mocov2plus."
)


def table(runs: Sequence[str | Path], format: str = "markdown") -> str:
    """Any set of runs, one line an evaluation, beside the paper's number and the difference.

    Runs that differ in the seed, and in nothing else that bears on the numbers, are one line: mean
    ± standard deviation over the runs. A single run's spread is the one over the evaluator's draws.
    `epochs` are those that the weights have been trained; the untrained backbone and raw pixels
    have none. `images` are those evaluated on. Of a kNN sweep only the default cell (k=20, T=0.07)
    is shown, where it is there. Top-5 stays in results.json. A run without records is named in a
    warning.

    Raises:
        UserError: no results in any of the runs; a broken results file; an unknown format.
    """
    lines = []
    for group in _groups(runs):
        cfg = group[0][1]
        label = group[0][0].name + (f" … ({len(group)} runs)" if len(group) > 1 else "")
        for records in _evaluations(group):
            first = records[0]
            value, spread = _summary(records)
            paper = paper_cells.paper_number(cfg, first, group[0][3])
            seen = (first.get("data_sets") or {}).get("val") or {}
            lines.append(
                [
                    label,
                    first.get("representation") or method_name(cfg),
                    paper_cells.data_name(cfg, first),
                    seen.get("images", ""),
                    _epochs(cfg, first),
                    f"{first['evaluator']}: {first['protocol']}",
                    first["metric"],
                    *_numbers(value, spread, paper, format),
                ]
            )
    if not lines:
        names = ", ".join(str(run) for run in runs)
        raise UserError(f"no results in {names}; evaluate first (`ressl linear RUN`, ...)")
    spread = ["spread"] * (format == "csv")
    table = ["table"] * (format == "csv")
    header = ["run", "method", "data", "images", "epochs", "evaluation", "metric"]
    return render([*header, "ours", *spread, "paper", *table, "diff."], lines, format)


def _epochs(cfg, record):
    if "epochs" in record:  # None: nobody knows, an import
        return "" if record["epochs"] is None else record["epochs"]
    if record.get("representation"):  # of pixels, or of weights that nobody has trained
        return ""
    return cfg.get("max_epochs", "")


def _numbers(value, spread, paper, format) -> list[str]:
    """Ours, the paper's and the difference; a number a column in CSV."""
    theirs, which = paper or (None, "")
    difference = number(value - theirs, signed=True) if paper else ""
    if format == "csv":
        return [number(value), number(spread), number(theirs), which, difference]
    return [number(value, spread), f"{theirs:.2f} (Table {which})" if paper else "", difference]


def paper_table(
    which: int, runs: Sequence[str | Path] = (), format: str = "markdown", made_for_it=False
) -> str:
    """One of the paper's tables, 1 to 10, with the numbers of these runs in it.

    A cell reads `ours [paper, difference]`, or `[paper]` where no run has it; rows and columns that
    the paper lacks come last. As CSV: one line a cell (row, column, ours, spread, paper,
    difference, note). Runs that are not of this table (`paper_cells.misfit`) are left out, which a
    warning says.
    made_for_it: they are, whatever overrides they were made with. A number of fewer epochs or of
    other images than the paper's has an asterisk and a line below (`paper_cells.deviations`).
    Of Table 3, as in the paper, each cell is the best one of Table 2's grid of temperatures.

    Raises:
        UserError: no such table, two experiments for one cell, a broken results file, an unknown
            format.
    """
    if which not in TABLES:
        raise UserError(f"the paper has no Table {which}; 1 to {max(TABLES)}")
    paper = TABLES[which]
    ours, notes = _cells(which, runs, made_for_it)
    rows = list(dict.fromkeys([*paper.values, *(row for row, _ in ours)]))
    columns = list(dict.fromkeys([*paper.columns, *(column for _, column in ours)]))
    if which == 5:
        columns.sort()
    if format == "csv":
        lines = []
        for row, column in [(r, c) for r in rows for c in columns]:
            theirs, mine = paper.get(row, column), ours.get((row, column))
            if theirs is None and mine is None:
                continue
            value, spread = _summary(mine) if mine else (None, None)
            both = mine is not None and theirs is not None
            lines.append(
                [_name(row), _name(column), number(value), number(spread), number(theirs),
                 number(value - theirs, signed=True) if both else "", notes.get((row, column), "")]
            )  # fmt: skip
        header = ["row", "column", "ours", "spread", "paper", "difference", "note"]
        return render(header, lines, "csv")

    def text(row, column):
        theirs, mine = paper.get(row, column), ours.get((row, column))
        if mine is None:
            return f"[{theirs:.2f}]" if theirs is not None else ""
        value, spread = _summary(mine)
        shown = number(value, spread) + "*" * ((row, column) in notes)
        return shown if theirs is None else f"{shown} [{theirs:.2f}, {value - theirs:+.2f}]"

    body = [[_name(row), *(text(row, column) for column in columns)] for row in rows]
    title = f"Table {which} ({paper.metric}, %): {paper.title}. In brackets: the paper, difference."
    if any(str(row) not in ("", "Random") and "ReSSL" not in str(row) for row, _ in ours) and (
        which in (1, 6, 8, 9, 10)
    ):
        title = f"{title} {OTHERS}"
    lead = {"markdown": f"{title}\n\n", "latex": f"% {title}\n"}.get(format, "")
    return lead + render(["", *map(_name, columns)], body, format) + _below(notes, format)


def _below(notes: dict[tuple, str], format: str) -> str:
    """The lines below a table: what the numbers with an asterisk are."""
    of_note: dict[str, list[str]] = {}
    for (row, column), note in notes.items():
        of_note.setdefault(note, []).append(f"{_name(row)} / {_name(column)}")
    lines = [f"* {note}: {', '.join(places)}" for note, places in of_note.items()]
    if not lines:
        return ""
    if format == "latex":
        return "".join(f"% {line}\n" for line in lines)
    return "\n" + "\n".join(lines) + "\n"


def _cells(which, runs, made_for_it) -> tuple[dict[tuple, list[dict]], dict[tuple, str]]:
    """(row, column) -> the records of that cell, one a seed, and of some what they are of."""
    ours: dict[tuple, list[dict]] = {}
    owners: dict[tuple, Path] = {}
    notes: dict[tuple, str] = {}
    tried: dict[tuple, set] = {}  # Table 3: pairs of temperatures
    for group in _groups(runs):
        folder, cfg, _, trained_on = group[0]
        places = (
            [(paper_cells.cell(which, cfg, r[0]), r) for r in _evaluations(group)] if cfg else []
        )
        places = [(place, records) for place, records in places if place]
        why = paper_cells.misfit(which, cfg) if places and not made_for_it else None
        if why:
            log.warning("%s is not of Table %d: %s", folder, which, why)
            continue
        weights = _weights(places[-1][1][0]) if places else None
        shown = dict(sorted(places, key=lambda p: _weight_of(p[1][0], weights)))
        for place, records in shown.items():
            if which == 3:
                kwargs = cfg.get("method_kwargs") or {}
                pair = kwargs.get("temperature_q"), kwargs.get("temperature_k")
                another = pair not in tried.setdefault(place, set())
                tried[place].add(pair)
                if another and place in ours and _summary(ours[place])[0] >= _summary(records)[0]:
                    continue
                if another:
                    owners[place] = folder
            if owners.setdefault(place, folder) != folder:
                raise UserError(
                    f"Table {which}: {owners[place]} and {folder} are both {_name(place[0])} / "
                    f"{_name(place[1])} and differ in more than the seed; give one of them"
                )
            ours[place] = records
            found = paper_cells.deviations(which, cfg, records[0], trained_on)
            notes.pop(place, None)
            if found:
                notes[place] = "; ".join(found)
    for place, pairs in tried.items():
        if len(pairs) < GRID:
            best = f"the best of {len(pairs)} of {GRID} pairs of temperatures"
            notes[place] = "; ".join(filter(None, [notes.get(place), best]))
    return ours, notes


def _weights(record) -> tuple:
    return record.get("checkpoint"), record.get("epochs")


def _weight_of(record, weights) -> tuple:
    """Of several records for one cell the greatest is shown: of the weights evaluated last, on the
    paper's images, by the protocol itself rather than by a recipe, and that rather than on features
    extracted once."""
    protocol = record["protocol"]
    if record["evaluator"] == "lowshot":
        return _weights(record) == weights, True, int("as PCL" in protocol)
    trained = 0 if "cached" in protocol else 1 if protocol.startswith("recipe") else 2
    return _weights(record) == weights, not paper_cells.other_images(record), trained


def read_config(run: str | Path) -> dict:
    """The run's config.yaml (or the host's args.json) as plain data; {} if it has neither."""
    for name in ("config.yaml", "args.json"):
        path = Path(run) / name
        if path.is_file():
            try:
                found = OmegaConf.create(yaml_files.read(path, words=False))
                cfg = OmegaConf.to_container(found, resolve=True)
            except OmegaConfBaseException as error:
                raise UserError(f"{path}: not a config: {' '.join(str(error).split())}") from None
            return _checked(cfg, path)
    return {}


def _checked(cfg, path: Path) -> dict:
    """The config if tables can read it; {} of one that names no data set, as the host's own.

    Raises:
        UserError: a node of it is no mapping.
    """
    nodes = ("data", "method_kwargs", "backbone")
    for key in nodes:
        if not isinstance(cfg.get(key) or {}, dict):
            raise UserError(f"{path}: {key}={cfg[key]!r}: not a mapping (key: value)")
    data = cfg.get("data") or {}
    return cfg if isinstance(data.get("dataset"), str) and "augmentations" in cfg else {}


def _groups(runs):
    """Runs of one experiment together: lists of (directory, config, latest records, identity of
    the images it was trained on)."""
    groups: dict[tuple, list] = {}
    seen: Counter = Counter()
    for run in {Path(run).resolve(): Path(run) for run in runs}.values():
        latest = {}
        cfg, trained_on = read_config(run), identity.of_run(run)
        records = results.read(run)
        if not records:
            log.warning("%s: no results; evaluate it first (`ressl linear RUN`, ...)", run)
        for record in map(partial(_as_now, cfg), records):
            names = ("representation", "evaluator", "protocol", "data", "epochs", "metric")
            images = (record.get("data_sets") or {}).get("val") or {}
            # a number of other images does not take the place of the one that is there
            key = (*(record.get(k) for k in names[:-1]), images.get("digest"), record["metric"])
            latest.pop(key, None)  # the latest comes last
            latest[key] = record
        key = _experiment(cfg, run, records) if cfg else str(run)
        # a seed that is there already is no further seed: two imports, or the run made again
        seen[key, cfg.get("seed")] += 1
        group = groups.setdefault((key, seen[key, cfg.get("seed")]), [])
        group.append((run, cfg, latest, trained_on))
    return groups.values()


def _as_now(cfg: dict, record: dict) -> dict:
    """A record under the names of today: one number has one name.

    `ressl compare` makes the run's own kNN number, too, and once called it otherwise.
    """
    if record["protocol"].startswith("kNN, k="):
        protocol = record["protocol"].removeprefix("kNN, ").replace(" T=", " cosine T=")
        record = {**record, "protocol": protocol}
    if record["evaluator"] == "knn" and record.get("representation") == method_name(cfg):
        record = {**record, "representation": None}
    return record


def _experiment(cfg, run, records) -> str:
    """All of a config that bears on the numbers, but the seed; images a step, not devices; the
    content of the training data, not their place."""
    settings = decisive(cfg)
    place = (cfg.get("data") or {}).get("train_path")
    settings["data.train_path"] = identity.of_run(run) or place
    settings["ranks"] = device_count(settings.get("devices", 1), 1) * settings.get("num_nodes", 1)
    if not all("data_sets" in record for record in records):  # of version 0.1.0: their place is
        settings["data.val_path"] = (cfg.get("data") or {}).get("val_path")  # all that is known
    for key in ("seed", "devices", "num_nodes", "wandb_run_id"):
        settings.pop(key, None)
    return json.dumps(settings, sort_keys=True, default=str)


def _evaluations(group):
    """For each evaluation that is shown: its records, one a run of the group."""
    keys = list(dict.fromkeys(key for _, _, latest, _ in group for key in latest))
    keys = [key for key in keys if key[-1] in METRICS]
    sweep = [key for key in keys if key[1] == "knn" and key[0] is None]
    default = [key for key in sweep if "k=20" in key[2].split() and "T=0.07" in key[2].split()]
    hidden = set(sweep) - set(default) if default else set()
    for key in keys:
        if key not in hidden:
            yield [latest[key] for _, _, latest, _ in group if key in latest]


def _summary(records):
    values = [record["value"] for record in records]
    if len(values) == 1:
        return values[0], records[0].get("spread")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _name(key) -> str:
    if isinstance(key, tuple):
        return f"{key[0]}, {key[1]}"
    return str(key)
