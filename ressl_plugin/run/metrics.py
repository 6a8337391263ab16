"""A run's metrics.csv: how it is written, and one value of each quantity an epoch."""

from __future__ import annotations

import contextlib
import csv
import logging
import math
import os
import shutil
from pathlib import Path

import numpy as np

from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)


class Unreadable(Exception):
    """A file without a header that names a column `step`."""


class Rows:
    """A CSV file of rows {name: value} with a `step`, only ever replaced as a whole.

    Rows wait in memory until they are on disk. A write that fails is logged once, leaves the file
    as it was and raises nothing: a full disk ends no training, and costs no row of one that finds
    room again.

    Attributes:
        waiting: the rows that are not in the file yet.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.waiting: list[dict] = []
        self._header: list[str] = []  # the file's, once this object has written it
        self._drop_from: float | None = math.inf  # rows of the file to drop; None: it is as wanted
        self._failed = False

    def keep(self, steps: int) -> None:
        """Drop the file's rows beyond the first `steps` steps, and those that cannot be read."""
        self._drop_from = steps
        self.save()

    def save(self) -> None:
        """Bring the file up to date, if there is anything new."""
        if not self.waiting and self._drop_from is None:
            return
        try:
            self._write()
        except OSError as error:
            if not self._failed:
                log.error(
                    "%s is not written (%s): its rows wait in memory, training goes on",
                    self.path,
                    error.strerror or error,
                )
            self._failed = True
            return
        if self._failed:
            log.warning("%s is written again, no row is lost", self.path)
        self.waiting.clear()
        self._drop_from, self._failed = None, False

    def _write(self) -> None:
        names = set().union(*self.waiting)
        if self._drop_from is None and names <= set(self._header) and self.path.is_file():
            with _replacing(self.path) as file, self.path.open("rb") as before:
                shutil.copyfileobj(before, file.buffer)
                csv.DictWriter(file, self._header).writerows(self.waiting)
            return
        header, rows = self._sound()
        if self._drop_from is not None:
            rows = [r for r in rows if int(r["step"]) < self._drop_from]
        rows += self.waiting
        old = header if len(rows) > len(self.waiting) else []
        header = old if names <= set(old) else sorted(names.union(old))
        if not rows:
            self.path.unlink(missing_ok=True)
        else:
            with _replacing(self.path) as file:
                writer = csv.DictWriter(file, header)
                writer.writeheader()
                writer.writerows(rows)
        self._header = header

    def _sound(self) -> tuple[list[str], list[dict]]:
        """Header and rows of the file; one that cannot be read at all is moved out of the way."""
        try:
            header, rows, bad = _read(self.path)
        except FileNotFoundError:
            return [], []
        except (Unreadable, IsADirectoryError, PermissionError) as error:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            os.replace(self.path, aside)
            log.warning("%s cannot be read (%s): it is %s now", self.path, error, aside.name)
            return [], []
        if bad:
            log.warning("%s: %d damaged rows are dropped, %d kept", self.path, bad, len(rows))
        return header, rows


@contextlib.contextmanager
def _replacing(path: Path):
    """A text file that takes the place of `path` when all of it is on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _read(path: Path) -> tuple[list[str], list[dict], int]:
    """Header, sound rows, and how many are not: cut off, too long, no text, or without a step.

    An empty file has no rows, and nothing in it is damaged.

    Raises:
        Unreadable: there is no header.
        OSError: the file cannot be opened or read.
    """
    rows, bad = [], 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        first = file.readline()
        if not first:
            return [], [], 0
        header = _cells(first)
        if "step" not in header:
            raise Unreadable("its first line names no column `step`")
        for line in file:
            row = dict(zip(header, cells := _cells(line)))
            if cells and len(cells) == len(header) and row["step"].isdecimal():
                rows.append(row)
            elif line.strip():
                bad += 1
    return header, rows, bad


def _cells(line: str) -> list[str]:
    """The values of one line, which is parsed alone: a stray quote costs one row, not the rest."""
    if "\ufffd" in line or "\0" in line:  # no text, or bytes that are none
        return []
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of Lightning's metrics.csv: name -> (epochs, mean value of each epoch).

    `_step` and `_epoch` suffixes are dropped; where a quantity has both, `_epoch` counts.

    Raises:
        UserError: the file is missing, empty, damaged, or has no `epoch` column.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {path}; train first, or give a run directory that has metrics.csv")
    sums: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        if "epoch" not in (reader.fieldnames or ()):
            raise UserError(f"{path} has no column 'epoch'; is it Lightning's metrics.csv?")
        for row in reader:
            if not row["epoch"]:
                continue
            epoch = int(_number(path, "epoch", row["epoch"]))
            for name, text in row.items():
                if name in ("epoch", "step", None) or not text:
                    continue
                value = _number(path, name, text)
                if math.isfinite(value):
                    sums.setdefault(name, {}).setdefault(epoch, []).append(value)
    if not sums:
        raise UserError(f"{path} holds no measurements yet; train at least one epoch")
    columns = {}
    for name in sorted(sums, key=lambda n: n.endswith("_epoch")):  # _epoch last: it overwrites
        epochs = np.array(sorted(sums[name]))
        values = np.array([np.mean(sums[name][epoch]) for epoch in epochs])
        columns[name.removesuffix("_epoch").removesuffix("_step")] = (epochs, values)
    return columns


def _number(path: Path, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{path}: column {column} holds '{text}', no number") from None
    if column == "epoch" and not math.isfinite(value):
        raise UserError(f"{path}: column epoch holds '{text}', no epoch")
    return value
