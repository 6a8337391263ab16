"""What a run has measured: the logs of all its starts as one.

Each start logs into a directory of its own, RUN/logs/<number>; RUN/metrics.csv has them joined,
as of the end of the last training (in a run of version 0.1.0 it is all there is).
"""

from __future__ import annotations

import csv
import io
import logging
import math
from pathlib import Path

import numpy as np

from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

NAME, LOGS = "metrics.csv", "logs"


def starts(folder: Path) -> list[Path]:
    """The directories in which a run's starts log, the first one first."""
    found = [path for path in (folder / LOGS).glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name))


def next_start(folder: Path) -> str:
    """Name of the directory in RUN/logs for the next start."""
    return str(max((int(path.name) for path in starts(folder)), default=-1) + 1)


def logged(folder: Path) -> list[Path]:
    """A run's files of measurements, the first one first."""
    found = [folder / NAME, *(start / NAME for start in starts(folder))]
    return [path for path in found if path.is_file()]


def joined(paths: list[Path]) -> list[dict[str, str]]:
    """The rows of several starts' files: from its first step on, a later start's count."""
    rows: list[dict[str, str]] = []
    for path in paths:
        if added := _rows(path):
            first = min(int(row["step"]) for row in added)
            rows = [row for row in rows if int(row["step"]) < first] + added
    return rows


def keep_joined(folder: Path) -> None:
    """Write RUN/metrics.csv; a full disk is logged: it can be joined again from the logs."""
    if not (rows := joined(logged(folder))):
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, sorted(set().union(*rows)))
    writer.writeheader()
    writer.writerows(rows)
    try:
        files.replace(folder / NAME, text.getvalue().encode())
    except OSError as error:
        log.error("%s: not written (%s); %s has it all", folder / NAME, error.strerror, LOGS)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; left out is what a full disk or a crash has cut off or run together."""
    rows, damaged = [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        header = next(file, "").strip().split(",")
        for line in file:
            row = dict(zip(header, cells := line.strip("\n").split(",")))
            if len(cells) == len(header) and row.get("step", "").isdecimal():
                rows.append(row)
            else:
                damaged += bool(line.strip())
    if damaged:
        log.warning("%s: %d damaged rows are left out, %d kept", path, damaged, len(rows))
    return rows


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of what a run has logged: name -> (epochs, mean value of each epoch).

    `_step` and `_epoch` suffixes are dropped; where a quantity has both, `_epoch` counts.

    Args:
        path: a run's directory, or one metrics.csv.

    Raises:
        UserError: no such file, nothing in it, no `epoch` column, or what is no number.
    """
    path = Path(path)
    paths = logged(path) if path.is_dir() else [path]
    if not paths or not paths[0].is_file():
        raise UserError(f"no {NAME} at {path}; train first, or give a run directory that has one")
    sums: dict[str, dict[int, list[float]]] = {}
    for row in joined(paths):
        if not row.get("epoch"):
            continue
        epoch = _number(path, "epoch", row["epoch"])
        for name, text in row.items():
            if name not in ("epoch", "step") and text:
                value = _number(path, name, text)
                if math.isfinite(value):
                    sums.setdefault(name, {}).setdefault(epoch, []).append(value)
    if not sums:
        raise UserError(f"{path}: no measurements of an epoch in Lightning's {NAME}; train one")
    columns = {}
    for name in sorted(sums, key=lambda n: n.endswith("_epoch")):  # _epoch last: it overwrites
        epochs = np.array(sorted(sums[name]))
        values = np.array([np.mean(sums[name][epoch]) for epoch in epochs])
        columns[name.removesuffix("_epoch").removesuffix("_step")] = (epochs, values)
    return columns


def _number(path: Path, column: str, text: str) -> float:
    try:
        return int(float(text)) if column == "epoch" else float(text)
    except (ValueError, OverflowError):
        raise UserError(f"{path}: column {column} holds '{text}', no number") from None
