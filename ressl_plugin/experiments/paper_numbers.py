"""The numbers of the paper's tables, and in what a number of ours is of something else.

The numbers are in scripts/paper/numbers.yaml. Rows and columns are text, as records name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from ressl_plugin import config
from ressl_plugin.config import yaml_files
from ressl_plugin.data.catalogue import DATASETS

FILE = config.RECIPES / "paper" / "numbers.yaml"
EPOCHS = 200
# images and classes that the paper evaluates on, and images that it pre-trains on
_OF_THE_PAPER = {name: row for name, row in DATASETS.items() if row.images}
TEST_SETS = {
    **{name: (row.images[1], row.classes) for name, row in _OF_THE_PAPER.items()},
    "voc07": (4_952, 20),
}
TRAINING_SETS = {name: row.images[0] for name, row in _OF_THE_PAPER.items()}
LABELLED_SETS = {**TRAINING_SETS, "stl10": 5_000}


@dataclass(frozen=True)
class PaperTable:
    """One table: `values[row][column]` in %, what they are of, what rows and columns are called
    after (see the head of numbers.yaml)."""

    title: str
    metric: str
    columns: tuple[str, ...]
    values: dict[str, dict[str, float]]
    row: tuple[str, ...] = ("method",)
    column: tuple[str, ...] = ("data.dataset",)
    evaluator: str = "linear"
    best_of: int = 1
    epochs: dict[str, int] = field(default_factory=dict)

    def get(self, row: str, column: str) -> float | None:
        """The paper's number, or None where it has none."""
        return self.values.get(row, {}).get(column)


@cache
def tables() -> dict[int, PaperTable]:
    """The paper's tables by number, 1 to 10."""
    return {number: _table(**found) for number, found in yaml_files.read(FILE, words=False).items()}


def _table(rows: dict, columns: list, **more) -> PaperTable:
    columns = tuple(map(str, columns))
    values = {
        row: {column: value for column, value in zip(columns, numbers) if value is not None}
        for row, numbers in rows.items()
    }
    return PaperTable(columns=columns, values=values, **more)


def deviations(
    number: int, row: str, cfg: Mapping, record: Mapping, trained_on: Mapping | None = None
) -> list[str]:
    """What a number of ours is of that the paper's is not: fewer epochs, other images or protocol.

    Args:
        number, row: of the table; cfg: the run's config; record: of its results.json.
        trained_on: the identity of the images that the run was trained on (`data.identify`).

    What a record does not say (those of version 0.1.0 know no images) is not counted.
    """
    found = []
    wanted = tables()[number].epochs.get(row, EPOCHS)
    epochs = record.get("epochs", cfg.get("max_epochs"))
    if cfg.get("method") != "random" and epochs not in (None, wanted):
        found.append(f"{epochs} epochs instead of {wanted}")
    if "cached features" in record["protocol"]:
        found.append("on features extracted once, not on new crops")
    return found + other_images(cfg, record, trained_on)


def other_images(cfg: Mapping, record: Mapping, trained_on: Mapping | None = None) -> list[str]:
    """What a number is of where its images are not the paper's; see `deviations`."""
    found = []
    seen, usual = (record.get("data_sets") or {}).get("val"), TEST_SETS.get(record["data"])
    if seen and usual and (seen["images"], seen["classes"]) != usual:
        found.append(
            f"evaluated on {seen['images']} images of {seen['classes']} classes "
            f"instead of {usual[0]} of {usual[1]}"
        )
    images = (trained_on or {}).get("images")
    sets = LABELLED_SETS if cfg.get("method") == "supervised" else TRAINING_SETS
    usual = sets.get((cfg.get("data") or {}).get("dataset"))
    if images and usual and images != usual:
        found.append(f"trained on {images} images instead of {usual}")
    return found
