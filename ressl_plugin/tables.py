"""Tables made from results files, with the paper's numbers beside ours where it has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from ressl_plugin import cells, results
from ressl_plugin.errors import UserError
from ressl_plugin.paper import TABLES
from ressl_plugin.render import number, render

# what may differ between runs that are the same experiment with another seed
PRIVATE = ("seed", "name", "run_dir", "resume", "wandb", "devices", "num_nodes", "wandb_run_id")
METRICS = ("top1", "mAP")


def comparison_table(records: list[dict], format: str = "markdown") -> str:
    """Representations (rows) by protocol (columns): mean ± spread of the latest record of each.

    Args:
        records: result records that have `representation`, as `evaluate.compare` makes them.

    Raises:
        UserError: no such record.
    """
    records = [r for r in records if r.get("representation")]
    if not records:
        raise UserError(
            "no records to compare; evaluate the representations first (results.json has none)"
        )
    found = {(r["representation"], r["protocol"]): r for r in records}
    rows = list(dict.fromkeys(r["representation"] for r in records))
    columns = list(dict.fromkeys(r["protocol"] for r in records))

    def text(row, column):
        record = found.get((row, column))
        return number(record["value"], record.get("spread")) if record else ""

    body = [[row, *(text(row, column) for column in columns)] for row in rows]
    return render(["representation", *columns], body, format)


def table(runs: Sequence[str | Path], format: str = "markdown") -> str:
    """Any set of runs, one line an evaluation, beside the paper's number and the difference.

    Runs whose configs differ in nothing but the seed are one line: mean ± standard deviation over
    the runs. A single run's spread is the one over the evaluator's draws. Of a kNN sweep only the
    default cell (k=20, T=0.07) is shown, where it is there. Top-5 stays in results.json.

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
            paper = cells.paper_number(cfg, first)
            lines.append(
                [
                    label,
                    first.get("representation") or cells.method_name(cfg),
                    first["data"],
                    cfg.get("max_epochs", ""),
                    f"{first['evaluator']}: {first['protocol']}",
                    first["metric"],
                    number(value, spread),
                    f"{paper[0]:.2f} (Table {paper[1]})" if paper else "",
                    number(value - paper[0], signed=True) if paper else "",
                ]
            )
    if not lines:
        names = ", ".join(str(run) for run in runs)
        raise UserError(f"no results in {names}; evaluate first (`ressl linear RUN`, ...)")
    header = ["run", "method", "data", "epochs", "evaluation", "metric", "ours", "paper", "diff."]
    return render(header, lines, format)


def paper_table(which: int, runs: Sequence[str | Path] = (), format: str = "markdown") -> str:
    """One of the paper's tables, 1 to 10, with the numbers of these runs in it.

    A cell reads `ours [paper, difference]`, or `[paper]` where no run has it; rows and columns that
    the paper lacks come last. As CSV: one line a cell (row, column, ours, spread, paper,
    difference).

    Raises:
        UserError: no such table, a broken results file, an unknown format.
    """
    if which not in TABLES:
        raise UserError(f"the paper has no Table {which}; 1 to {max(TABLES)}")
    paper = TABLES[which]
    ours: dict[tuple, list[dict]] = {}
    for group in _groups(runs):
        for records in _evaluations(group):
            place = cells.cell(which, group[0][1], records[0]) if group[0][1] else None
            if place:
                ours[place] = records  # of several protocols the last
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
                 number(value - theirs, signed=True) if both else ""]
            )  # fmt: skip
        return render(["row", "column", "ours", "spread", "paper", "difference"], lines, "csv")

    def text(row, column):
        theirs, mine = paper.get(row, column), ours.get((row, column))
        if mine is None:
            return f"[{theirs:.2f}]" if theirs is not None else ""
        value, spread = _summary(mine)
        if theirs is None:
            return number(value, spread)
        return f"{number(value, spread)} [{theirs:.2f}, {value - theirs:+.2f}]"

    body = [[_name(row), *(text(row, column) for column in columns)] for row in rows]
    title = f"Table {which} ({paper.metric}, %): {paper.title}. In brackets: the paper, difference."
    lead = {"markdown": f"{title}\n\n", "latex": f"% {title}\n"}.get(format, "")
    return lead + render(["", *map(_name, columns)], body, format)


def read_config(run: str | Path) -> dict:
    """The run's config.yaml (or the host's args.json) as plain data; {} if it has neither."""
    for name in ("config.yaml", "args.json"):
        path = Path(run) / name
        if path.is_file():
            try:
                return OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            except Exception as error:
                raise UserError(f"{path}: not a config: {' '.join(str(error).split())}") from None
    return {}


def _groups(runs):
    """Runs of one experiment together: lists of (directory, config, latest records)."""
    groups: dict[str, list] = {}
    for run in map(Path, runs):
        latest = {}
        for record in results.read(run):
            key = [record.get(k) for k in ("representation", "evaluator", "protocol", "data")]
            latest[(*key, record["metric"])] = record
        cfg = read_config(run)
        public = {k: v for k, v in cfg.items() if k not in PRIVATE}
        key = json.dumps(public, sort_keys=True, default=str) if cfg else str(run)
        groups.setdefault(key, []).append((run, cfg, latest))
    return groups.values()


def _evaluations(group):
    """For each evaluation that is shown: its records, one a run of the group."""
    keys = list(dict.fromkeys(key for _, _, latest in group for key in latest))
    keys = [key for key in keys if key[-1] in METRICS]
    sweep = [key for key in keys if key[1] == "knn" and key[0] is None]
    default = [key for key in sweep if "k=20" in key[2].split() and "T=0.07" in key[2].split()]
    hidden = set(sweep) - set(default) if default else set()
    for key in keys:
        if key not in hidden:
            yield [latest[key] for _, _, latest in group if key in latest]


def _summary(records):
    values = [record["value"] for record in records]
    if len(values) == 1:
        return values[0], records[0].get("spread")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _name(key) -> str:
    if isinstance(key, tuple):
        return f"{key[0]}, {key[1]}"
    return str(key)
