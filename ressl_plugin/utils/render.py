"""A header and rows of text as Markdown, LaTeX or CSV."""

from __future__ import annotations

import csv
import io

from ressl_plugin.utils.errors import UserError

FORMATS = ("markdown", "latex", "csv")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "$": r"\$",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "τ": r"$\tau$",
}  # fmt: skip


def render(header: list[str], rows: list[list[str]], format: str = "markdown") -> str:
    """Text of a table that ends in a newline. Raises UserError for an unknown format."""
    if format not in FORMATS:
        raise UserError(f"table format '{format}' unknown; one of {', '.join(FORMATS)}")
    rows = [["" if cell is None else str(cell) for cell in row] for row in rows]
    return {"markdown": _markdown, "latex": _latex, "csv": _csv}[format](header, rows)


def number(value: float | None, spread: float | None = None, signed: bool = False) -> str:
    """Two decimals, as the paper; `mean ± spread` where there is a spread."""
    if value is None:
        return ""
    text = f"{value:+.2f}" if signed else f"{value:.2f}"
    return text if spread is None else f"{text} ± {spread:.2f}"


def _markdown(header, rows):
    table = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    widths = [max(3, *(len(row[i]) for row in table)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def _latex(header, rows):
    def line(cells):
        escaped = " & ".join("".join(_LATEX.get(c, c) for c in cell) for cell in cells)
        # after \\ a bracket or star would be read as its argument
        return ("{}" if escaped[:1] in ("[", "*") else "") + escaped + r" \\"

    columns = "l" + "r" * (len(header) - 1)
    return "\n".join(
        [
            r"\begin{tabular}{" + columns + "}",
            r"\toprule",
            line(header),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _csv(header, rows):
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    return buffer.getvalue()
