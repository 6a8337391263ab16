"""Tables made from results files, with the paper's numbers beside ours where it has them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ressl_plugin.config import yaml_files
from ressl_plugin.config.diff import decisive
from ressl_plugin.data import identity
from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments import paper_numbers
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
    warning. The paper's number is that of the record's place (`ressl paper` gives it one), if both
    are of the same images; how many epochs ours had is not asked.

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
            paper = _paper_number(cfg, first, group[0][3])
            seen = (first.get("data_sets") or {}).get("val") or {}
            lines.append(
                [
                    label,
                    first.get("representation") or method_name(cfg),
                    _data_name(cfg, first),
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


def _paper_number(cfg, record, trained_on) -> tuple[float, int] | None:
    """(value, number of the table) of the paper's cell that a record is to be set beside, if any.

    Of several tables the first; none where the paper's number is the best of many runs.
    """
    if paper_numbers.other_images(cfg, record, trained_on):
        return None
    for place in sorted(record.get("place", ()), key=itemgetter("table")):
        table = paper_numbers.tables().get(place["table"])
        value = table and table.get(place["row"], place["column"])
        if value is not None and table.best_of == 1:
            return value, place["table"]
    return None


def _data_name(cfg, record) -> str:
    """The name of the images that a record is of; a folder's own name where the data set has none.

    `datasets/digits/train` is digits.
    """
    data = cfg.get("data") or {}
    if record["data"] not in ("custom", "npz") or not isinstance(data.get("train_path"), str):
        return record["data"]
    place = Path(data["train_path"])
    name = place.parent.name if place.stem.lower() in ("train", "training") else place.stem
    return name or record["data"]


def paper_table(which: int, runs: Sequence[str | Path] = (), format: str = "markdown") -> str:
    """One of the paper's tables, 1 to 10, with the numbers of these runs in it.

    A number's place in it is in its record; `ressl paper` writes it there. A cell reads `ours
    [paper, difference]`, or `[paper]` where no run has it; rows and columns that the paper lacks
    come last. As CSV: one line a cell (row, column, ours, spread, paper, difference, note). Runs
    without a number of this table are left out, which a warning says. A number of fewer epochs or
    of other images than the paper's has an asterisk and a line below. Of Table 3, as in the paper,
    each cell is the best one of Table 2's grid of temperatures.

    Raises:
        UserError: no such table, two experiments for one cell, a broken results file, an unknown
            format.
    """
    tables = paper_numbers.tables()
    if which not in tables:
        raise UserError(f"the paper has no Table {which}; 1 to {max(tables)}")
    paper = tables[which]
    ours, notes = _cells(which, runs)
    rows = list(dict.fromkeys([*paper.values, *(row for row, _ in ours)]))
    columns = list(dict.fromkeys([*paper.columns, *(column for _, column in ours)]))
    if format == "csv":
        lines = []
        for row, column in [(r, c) for r in rows for c in columns]:
            theirs, mine = paper.get(row, column), ours.get((row, column))
            if theirs is None and mine is None:
                continue
            value, spread = _summary(mine) if mine else (None, None)
            both = mine is not None and theirs is not None
            lines.append(
                [row, column, number(value), number(spread), number(theirs),
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

    body = [[row, *(text(row, column) for column in columns)] for row in rows]
    title = f"Table {which} ({paper.metric}, %): {paper.title}. In brackets: the paper, difference."
    others = [row for row, _ in ours if row != "Random" and not row.startswith("ReSSL")]
    if others and which in (1, 6, 7, 8, 9, 10):
        title = f"{title} {OTHERS}"
    lead = {"markdown": f"{title}\n\n", "latex": f"% {title}\n"}.get(format, "")
    return lead + render(["", *columns], body, format) + _below(notes, format)


def places(run: str | Path, number: int) -> set[tuple[str, str]]:
    """(row, column) of the places that a run's records have in one of the paper's tables."""
    found = [place for record in results.read(run) for place in record.get("place", ())]
    return {(place["row"], place["column"]) for place in found if place["table"] == number}


def _below(notes: dict[tuple, str], format: str) -> str:
    """The lines below a table: what the numbers with an asterisk are."""
    of_note: dict[str, list[str]] = {}
    for (row, column), note in notes.items():
        of_note.setdefault(note, []).append(f"{row} / {column}")
    lines = [f"* {note}: {', '.join(places)}" for note, places in of_note.items()]
    if not lines:
        return ""
    if format == "latex":
        return "".join(f"% {line}\n" for line in lines)
    return "\n" + "\n".join(lines) + "\n"


def _cells(which, runs) -> tuple[dict[tuple, list[dict]], dict[tuple, str]]:
    """(row, column) -> the records of that cell, one a seed, and of some what they are of."""
    grid = paper_numbers.tables()[which].best_of
    ours: dict[tuple, list[dict]] = {}
    owners: dict[tuple, Path] = {}
    notes: dict[tuple, str] = {}
    tried: dict[tuple, set] = {}  # of a grid: the pairs of temperatures
    for group in _groups(runs):
        folder, cfg, latest, trained_on = group[0]
        placed = _placed(which, group)
        if latest and not placed:
            log.warning(
                "%s has no number of Table %d; `ressl paper table%d` makes those that are in it, "
                "and gives their place to those that it finds", folder, which, which
            )  # fmt: skip
        for place, records in placed.items():
            kwargs = cfg.get("method_kwargs") or {}
            pair = kwargs.get("temperature_q"), kwargs.get("temperature_k")
            another = grid > 1 and pair not in tried.setdefault(place, set())
            tried.setdefault(place, set()).add(pair)
            if another and place in ours and _summary(ours[place])[0] >= _summary(records)[0]:
                continue
            if not another and owners.get(place, folder) != folder:
                raise UserError(
                    f"Table {which}: {owners[place]} and {folder} are both {' / '.join(place)} and "
                    "differ in more than the seed; give one of them"
                )
            ours[place], owners[place] = records, folder
            notes[place] = "; ".join(
                paper_numbers.deviations(which, place[0], cfg, records[0], trained_on)
            )
    for place, pairs in tried.items():
        if len(pairs) < grid:
            best = f"the best of {len(pairs)} of {grid} pairs of temperatures"
            notes[place] = "; ".join(filter(None, [notes[place], best]))
    return ours, {place: note for place, note in notes.items() if note}


def _placed(which, group) -> dict[tuple, list[dict]]:
    """(row, column) -> the records that a group of runs has for it.

    Of several those of the weights evaluated last, on the paper's images, not on features
    extracted once.
    """
    cfg, trained_on = group[0][1], group[0][3]
    found = [
        ((place["row"], place["column"]), records)
        for records in _evaluations(group)
        for place in next((r["place"] for r in records if "place" in r), ())
        if place["table"] == which
    ]
    weights = lambda record: (record.get("checkpoint"), record.get("epochs"))
    last = weights(found[-1][1][0]) if found else None

    def rank(one):
        record = one[1][0]
        usual = not paper_numbers.other_images(cfg, record, trained_on)
        return weights(record) == last, usual, "cached" not in record["protocol"]

    return dict(sorted(found, key=rank))


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
            if before := latest.pop(key, None):  # the latest comes last, in the same place
                record = {**{k: before[k] for k in ("place",) if k in before}, **record}
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
