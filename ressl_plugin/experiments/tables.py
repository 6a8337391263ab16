"""Tables made from results files, with the paper's numbers beside ours where it has them."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from ressl_plugin.evaluate.subject import method_name
from ressl_plugin.experiments.grouping import METRICS, Evaluated, evaluations, groups, summary
from ressl_plugin.experiments.paper_numbers import other_images, tables
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number, render


def table(runs: Sequence[str | Path], format: str = "markdown") -> str:
    """Any set of runs, one line an evaluation, beside the paper's number and the difference.

    Runs that differ in the seed, and in nothing else that bears on the numbers, are one line: mean
    ± standard deviation over the runs. A single run's spread is the one over the evaluator's draws.
    `epochs` are those that the weights have been trained, `images` those evaluated on. The paper's
    number is that of the record's place (`ressl paper` gives it one), if both are of the same
    images; how many epochs ours had is not asked.

    Raises:
        UserError: no results in any of the runs; a broken results file; an unknown format.
    """
    lines = [line for group in groups(runs) for line in lines_of(group, format)]
    if not lines:
        names = ", ".join(str(run) for run in runs)
        raise UserError(f"no results in {names}; evaluate first (`ressl linear RUN`, ...)")
    ours = ["ours", "spread", "paper", "table"] if format == "csv" else OURS
    return render([*COLUMNS, *ours, "diff."], lines, format)


COLUMNS = ["run", "method", "data", "images", "epochs", "evaluation", "metric"]
OURS = ["ours", "paper"]


def label(group: list[Evaluated], count: int | None = None) -> str:
    """What a line calls the runs of one experiment, of which it is about `count`; None: all."""
    runs = f"{len(group)} runs" if count in (None, len(group)) else f"{count} of {len(group)} runs"
    return group[0].dir.name + (f" … ({runs})" if len(group) > 1 else "")


def lines_of(group: list[Evaluated], format: str = "markdown", metrics=METRICS) -> list[list]:
    """The lines of one experiment's runs: COLUMNS, OURS and the difference."""
    cfg, lines = group[0].cfg, []
    for records in evaluations(group, metrics):
        first = records[0]
        value, spread = summary(records)
        paper = _paper_number(cfg, first, group[0].trained_on)
        seen = (first.get("data_sets") or {}).get("val") or {}
        lines.append(
            [
                label(group, len(records)),
                first.get("representation") or method_name(cfg),
                data_name(cfg, first["data"]),
                seen.get("images", ""),
                _epochs(cfg, first),
                f"{first['evaluator']}: {first['protocol']}",
                first["metric"],
                *_numbers(value, spread, paper, format),
            ]
        )
    return lines


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
    if other_images(cfg, record, trained_on):
        return None
    for place in sorted(record.get("place", ()), key=itemgetter("table")):
        table = tables().get(place["table"])
        value = table and table.get(place["row"], place["column"])
        if value is not None and table.best_of == 1:
            return value, place["table"]
    return None


def data_name(cfg, name: str) -> str:
    """The name of images that a record calls `name`; a folder's own where the data set has none
    and is the one that the run was trained on.

    `datasets/digits/train` is digits.
    """
    data = cfg.get("data") or {}
    others = name not in ("custom", "npz") or name != data.get("dataset")
    if others or not isinstance(data.get("train_path"), str):
        return name
    place = Path(data["train_path"])
    of_a_split = place.stem.lower() in ("train", "training")
    return (place.parent.name if of_a_split else place.stem) or name
