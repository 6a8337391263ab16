"""How figures look in print: one column wide, colours that everybody can tell apart."""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager
from pathlib import Path

from ressl_plugin.utils import files, packages

COLUMN = 3.3  # width of a column in inches
# Paul Tol's "muted": ten colours that stay apart under the common colour-vision deficiencies
PALETTE = (
    "#332288", "#CC6677", "#117733", "#88CCEE", "#882255",
    "#DDCC77", "#44AA99", "#AA4499", "#999933", "#777777",
)  # fmt: skip
MARKERS = "os^DvPX<>p"
SMALL = 6  # points of labels
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: printers and arXiv refuse Type 3
}


def need_matplotlib() -> None:
    """Raises UserError where it is not installed: it is an extra of the package."""
    packages.need("matplotlib", "figures", "drawing")


def shortened(text: str, most: int) -> str:
    """`text`, or as many letters of it as `most` allows, ending in an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


@contextmanager
def figure_of(height: float, path: str | Path):
    """Yields a figure of column width and its paths; saves PNG and PDF when the block ends."""
    need_matplotlib()
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    paths = [path.with_name(path.name + suffix) for suffix in (".png", ".pdf")]
    # embedding TrueType in the PDF otherwise reports every table of the font it leaves out
    logging.getLogger("fontTools").setLevel(logging.WARNING)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(COLUMN, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, paths
        for file in paths:
            content = io.BytesIO()  # on a full disk half a picture is worse than none
            figure.savefig(content, format=file.suffix[1:])
            files.replace(file, content.getvalue())
