"""Lightning's metrics.csv, one value of each quantity an epoch."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from ressl_plugin.errors import UserError


def read_metrics(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Columns of Lightning's metrics.csv: name -> (epochs, mean value of each epoch).

    `_step` and `_epoch` suffixes are dropped; where a quantity has both, `_epoch` counts.

    Raises:
        UserError: the file is missing, empty, or has no `epoch` column.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no {path}; train first, or give a run directory that has metrics.csv")
    sums: dict[str, dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "epoch" not in (reader.fieldnames or ()):
            raise UserError(f"{path} has no column 'epoch'; is it Lightning's metrics.csv?")
        for row in reader:
            if not row["epoch"]:
                continue
            for name, text in row.items():
                if name in ("epoch", "step", None) or not text:
                    continue
                try:
                    value = float(text)
                except (TypeError, ValueError):
                    raise UserError(f"{path}: column {name} holds '{text}', no number") from None
                if math.isfinite(value):
                    sums.setdefault(name, {}).setdefault(int(float(row["epoch"])), []).append(value)
    if not sums:
        raise UserError(f"{path} holds no measurements yet; train at least one epoch")
    columns = {}
    for name in sorted(sums, key=lambda n: n.endswith("_epoch")):  # _epoch last: it overwrites
        epochs = np.array(sorted(sums[name]))
        values = np.array([np.mean(sums[name][epoch]) for epoch in epochs])
        columns[name.removesuffix("_epoch").removesuffix("_step")] = (epochs, values)
    return columns
