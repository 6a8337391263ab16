"""Tables made from results files, with the paper's numbers beside ours where it has them."""

from __future__ import annotations

from ressl_plugin.errors import UserError
from ressl_plugin.render import number, render


def comparison_table(records: list[dict], format: str = "markdown") -> str:
    """Representations (rows) by protocol (columns): mean ± spread of the latest record of each.

    Args:
        records: result records that have `representation`, as `evaluate.compare` makes them.

    Raises:
        UserError: no such record.
    """
    records = [r for r in records if r.get("representation")]
    if not records:
        raise UserError("no records to compare; evaluate the representations first (results.json has none)")
    cells = {(r["representation"], r["protocol"]): r for r in records}
    rows = list(dict.fromkeys(r["representation"] for r in records))
    columns = list(dict.fromkeys(r["protocol"] for r in records))

    def cell(row, column):
        found = cells.get((row, column))
        return number(found["value"], found.get("spread")) if found else ""

    body = [[row, *(cell(row, column) for column in columns)] for row in rows]
    return render(["representation", *columns], body, format)
