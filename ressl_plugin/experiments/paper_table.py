"""The paper's tables with our numbers in them, each where its record says that it stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ressl_plugin.experiments.grouping import Evaluated, evaluations, groups, summary
from ressl_plugin.experiments.paper_numbers import deviations, other_images, tables
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.render import number, render

log = logging.getLogger(__name__)

# of the paper's own rows of other methods, ours are something else
OTHERS = (
    "Rows other than ReSSL's: solo-learn's methods with the settings of "
    "scripts/benchmark/methods.yaml, not their authors'; MoCo is its two-sided mocov2plus."
)


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
    if which not in tables():
        raise UserError(f"the paper has no Table {which}; 1 to {max(tables())}")
    paper, ours = tables()[which], _ours(which, runs)
    rows = list(dict.fromkeys([*paper.values, *(row for row, _ in ours)]))
    columns = list(dict.fromkeys([*paper.columns, *(column for _, column in ours)]))
    if format == "csv":
        cells = ((place, paper.get(*place), ours.get(place)) for place in product(rows, columns))
        lines = [
            [*place, *_numbers(theirs, mine)] for place, theirs, mine in cells if theirs or mine
        ]
        header = ["row", "column", "ours", "spread", "paper", "difference", "note"]
        return render(header, lines, "csv")
    text = lambda *place: _text(paper.get(*place), ours.get(place))
    body = [[row, *(text(row, column) for column in columns)] for row in rows]
    title = f"Table {which} ({paper.metric}, %): {paper.title}. In brackets: the paper, difference."
    others = [row for row, _ in ours if row != "Random" and not row.startswith("ReSSL")]
    if others and which in (1, 6, 7, 8, 9, 10):
        title = f"{title} {OTHERS}"
    lead = {"markdown": f"{title}\n\n", "latex": f"% {title}\n"}.get(format, "")
    return lead + render(["", *columns], body, format) + _below(ours, format)


@dataclass(frozen=True)
class Number:
    """Ours in one cell: mean and spread over seeds, the run (of several the first) that it is of,
    and what it is of that the paper's is not."""

    value: float
    spread: float | None
    folder: Path
    note: str


def _numbers(theirs: float | None, mine: Number | None) -> list[str]:
    """Ours, spread, the paper's, difference and note; of one of the two there may be none."""
    if mine is None:
        return ["", "", number(theirs), "", ""]
    difference = "" if theirs is None else number(mine.value - theirs, signed=True)
    return [number(mine.value), number(mine.spread), number(theirs), difference, mine.note]


def _text(theirs: float | None, mine: Number | None) -> str:
    if mine is None:
        return "" if theirs is None else f"[{theirs:.2f}]"
    shown = number(mine.value, mine.spread) + "*" * bool(mine.note)
    return shown if theirs is None else f"{shown} [{theirs:.2f}, {mine.value - theirs:+.2f}]"


def _below(ours: dict[tuple, Number], format: str) -> str:
    """The lines below a table: what the numbers with an asterisk are."""
    of_note: dict[str, list[str]] = {}
    for place, mine in ours.items():
        if mine.note:
            of_note.setdefault(mine.note, []).append(" / ".join(place))
    lines = [f"* {note}: {', '.join(places)}" for note, places in of_note.items()]
    if format == "latex":
        return "".join(f"% {line}\n" for line in lines)
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _ours(which: int, runs: Sequence[str | Path]) -> dict[tuple, Number]:
    """(row, column) -> our number."""
    grid = tables()[which].best_of
    tried: dict[tuple, dict[tuple, Number]] = {}  # by the temperatures, where the best one counts
    for group in groups(runs):
        run = group[0]
        placed = _placed(which, group)
        if run.latest and not placed:
            log.warning(
                "%s has no number of Table %d; `ressl paper table%d` makes those that are in it, "
                "and gives their place to those that it finds", run.dir, which, which
            )  # fmt: skip
        kwargs = run.cfg.get("method_kwargs") or {}
        pair = (kwargs.get("temperature_q"), kwargs.get("temperature_k")) if grid > 1 else None
        for place, records in placed.items():
            note = "; ".join(deviations(which, place[0], run.cfg, records[0], run.trained_on))
            mine = Number(*summary(records), run.dir, note)
            other = tried.setdefault(place, {}).setdefault(pair, mine)
            if other is not mine:
                raise UserError(
                    f"Table {which}: {other.folder} and {run.dir} are both {' / '.join(place)} and "
                    "differ in more than the seed; give one of them"
                )
    return {place: _best(list(numbers.values()), grid) for place, numbers in tried.items()}


def _best(numbers: list[Number], grid: int) -> Number:
    best = max(numbers, key=lambda one: one.value)
    if len(numbers) == grid:
        return best
    note = f"the best of {len(numbers)} of {grid} pairs of temperatures"
    return replace(best, note="; ".join(filter(None, [best.note, note])))


def _placed(which: int, group: list[Evaluated]) -> dict[tuple, list[dict]]:
    """(row, column) -> the records that a group of runs has for it.

    Of several those of the weights evaluated last, on the paper's images, not on features
    extracted once.
    """
    found = [
        ((place["row"], place["column"]), records)
        for records in evaluations(group)
        for place in next((r["place"] for r in records if "place" in r), ())
        if place["table"] == which
    ]
    weights = lambda record: (record.get("checkpoint"), record.get("epochs"))
    last = weights(found[-1][1][0]) if found else None

    def rank(one):
        record = one[1][0]
        usual = not other_images(group[0].cfg, record, group[0].trained_on)
        return weights(record) == last, usual, "cached" not in record["protocol"]

    return dict(sorted(found, key=rank))


def places(run: str | Path, number: int) -> set[tuple[str, str]]:
    """(row, column) of the places that a run's records have in one of the paper's tables."""
    found = [place for record in results.read(run) for place in record.get("place", ())]
    return {(place["row"], place["column"]) for place in found if place["table"] == number}
