"""`ressl report`: runs as one HTML page to pass on, self-contained, without a trace of the machine.

The template is report.html beside this file. Pictures are drawn anew and embedded.
"""

from __future__ import annotations

import base64
import io
import logging
import re
import shlex
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath

from omegaconf import OmegaConf
from PIL import Image

from ressl_plugin.config.diff import without_places
from ressl_plugin.evaluate import contact_sheet, figures
from ressl_plugin.evaluate.neighbours import neighbours_of_run
from ressl_plugin.evaluate.quality import BETTER
from ressl_plugin.evaluate.subject import device_named, method_name, with_overrides
from ressl_plugin.experiments import tables, template
from ressl_plugin.experiments.grouping import METRICS, Evaluated, evaluations, groups, summary
from ressl_plugin.run import results
from ressl_plugin.run.directories import Run
from ressl_plugin.run.metrics import logged
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import RunFault, UserError
from ressl_plugin.utils.plot_style import need_matplotlib
from ressl_plugin.utils.render import number

log = logging.getLogger(__name__)

SHOWN = (*METRICS, *BETTER)
WIDEST = 1400  # pixels of an embedded picture
FACTS = {
    "backbone": "backbone.name",
    "stem": "backbone.stem",
    "student temperature τs": "method_kwargs.temperature_q",
    "teacher temperature τt": "method_kwargs.temperature_k",
    "memory K": "method_kwargs.queue_size",
    "batch": "optimizer.batch_size",
    "learning rate (for 256)": "optimizer.lr",
    "precision": "precision",
}


def report(runs: Sequence[str | Path], out: str | Path, overrides=(), device: str = "auto") -> Path:
    """Write a page on one run, or on several with a comparison.

    Runs that differ in the seed alone are one experiment; pictures are the first one's. What cannot
    be drawn (images that are not here) is said on the page and in the log.

    Args:
        out: the file to write, a name that ends in .html.
        overrides: other values than the runs' own, such as data.val_path=DIR.

    Raises:
        UserError: no such run, a broken results file, another name, matplotlib is missing.
    """
    out = Path(out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out {out}: the file to write, a name that ends in .html")
    need_matplotlib()
    found = groups(runs)
    place = device_named(device)
    for group in found if overrides else ():  # a mistake in them is no picture's
        with_overrides(str(group[0].dir), list(overrides))
    text = template("report.html").render(
        title=tables.label(found[0]) if len(found) == 1 else f"{len(found)} experiments",
        comparison=comparison(found) if len(found) > 1 else None,
        experiments=[experiment(group, found, overrides, place) for group in found],
        versions=results.versions(),
    )
    files.replace(out, text.encode())
    return out


def comparison(found: list[list[Evaluated]]) -> dict:
    """{columns, rows}: an experiment a row, what was measured of any of them a column.

    A cell is its text and the number to sort by, None where there is none.
    """
    rows, columns = [], {}
    for group in found:
        cells, best = {}, {}
        for records in evaluations(group, SHOWN):
            first = records[0]
            if first.get("representation") in (None, method_name(group[0].cfg)):
                column = f"{first['metric']} ({first['evaluator']}: {first['protocol']})"
                if (group[0].cfg.get("data") or {}).get("dataset") != first["data"]:
                    column += f" on {first['data']}"
                rank = first.get("epochs") or 0, len(records)
                if column not in best or rank >= best[column]:  # not the number of half a training
                    value, spread = summary(records)
                    cells[column], best[column] = (number(value, spread), value), rank
        columns |= dict.fromkeys(cells)
        epochs = max((rank[0] for rank in best.values()), default=0)
        epochs = epochs or group[0].cfg.get("max_epochs")
        names = tables.label(group), method_name(group[0].cfg), _data(group[0])
        rows.append(([*((text, None) for text in names), (str(epochs or ""), epochs)], cells))
    return {
        "columns": ["run", "method", "data", "epochs", *columns],
        "rows": [[*begin, *(cells.get(c, ("", None)) for c in columns)] for begin, cells in rows],
    }


def _data(run: Evaluated) -> str:
    name = (run.cfg.get("data") or {}).get("dataset", "?")
    return tables.data_name(run.cfg, name)


def numbers(group: list[Evaluated]) -> dict:
    """{columns, rows} of an experiment, the paper's beside ours where a record has a place."""
    columns = [*tables.COLUMNS[1:], *tables.OURS, "diff."]
    rows = [list(map(str, line[1:])) for line in tables.lines_of(group, metrics=SHOWN)]
    if not any(row[columns.index("paper")] for row in rows):
        columns, rows = columns[:-2], [row[:-2] for row in rows]
    return {"columns": columns, "rows": rows}


def experiment(group: list[Evaluated], found: list[list[Evaluated]], overrides, device) -> dict:
    """What the template shows of the runs that differ in the seed alone."""
    first = group[0]
    return {
        "name": tables.label(group),
        "facts": facts(group),
        "numbers": numbers(group),
        "pictures": pictures(first, found, overrides, device),
        "config": OmegaConf.to_yaml(OmegaConf.create(placeless(first.cfg))),
        "commands": commands(group),
    }


def facts(group: list[Evaluated]) -> list[tuple[str, str]]:
    """(what, text): method, data, epochs, seeds, settings."""
    cfg = OmegaConf.create(group[0].cfg)
    images = group[0].trained_on or {}
    data = _data(group[0])
    if images:
        data += f", {images['images']:,} images of {images['classes']} classes"
    trained = [r["epochs"] for run in group for r in run.latest.values() if r.get("epochs")]
    epochs = cfg.get("max_epochs", "?")
    seeds = ", ".join(str(run.cfg.get("seed", "?")) for run in group)
    rows = [
        ("method", method_name(group[0].cfg)),
        ("trained on", data),
        ("epochs", f"{max(trained)} of {epochs}" if trained else str(epochs)),
        ("seed" if len(group) == 1 else "seeds", seeds),
        *((what, OmegaConf.select(cfg, key)) for what, key in FACTS.items()),
    ]
    return [(what, str(value)) for what, value in rows if value is not None]


def commands(group: list[Evaluated]) -> list[str]:
    """The commands that made the records, without the places of this machine."""
    records = [record for run in group for record in results.read(run.dir)]
    shown = []
    for command in dict.fromkeys(record.get("command") or "" for record in records):
        try:
            words = shlex.split(command)
        except ValueError:  # a quotation that does not end: written by hand
            words = command.split()
        shown.append(" ".join(_quoted(nameless(word)) for word in words))
    return list(filter(None, shown))


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w…@%+=:,./-]+", word) else shlex.quote(word)


def placeless(config) -> dict:
    """A config's plain values without this machine's places; other paths are cut short."""
    plain = without_places(config)
    plain.pop("resume_force", None)

    def shortened(value):
        if isinstance(value, dict):
            return {key: shortened(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [shortened(inner) for inner in value]
        return nameless(value) if isinstance(value, str) else value

    return shortened(plain)


def nameless(word: str) -> str:
    """`data.train_path=/home/ann/digits/train` is `data.train_path=…/train`."""
    key, value = re.fullmatch(r"((?:[\w.+~-]+=)?)(.*)", word, re.DOTALL).groups()
    bare = value.strip("\"'[]")  # quoted for Hydra
    path = PurePath(bare)
    if path.is_absolute() or bare.startswith("~") or ".." in path.parts:
        value = f"…/{path.name}"
    return f"{key}{value}"


def pictures(run: Evaluated, found: list[list[Evaluated]], overrides, device) -> list[dict]:
    """{title, alt, kind, image or None}: curves, feature space, neighbours, views."""
    others = [one.dir for group in found for one in group if one is not run and logged(one.dir)]
    size = (run.cfg.get("method_kwargs") or {}).get("queue_size")

    def opened() -> Run:
        return with_overrides(str(run.dir), list(overrides))

    drawn = [
        ("curves", "Loss, entropy of the target relation and accuracies by epoch"
         + ("; the other runs in grey" if others else ""), "plot",
         lambda path: figures.curves(run.dir, path, size, others)[0]),
        ("feature space", "t-SNE of the untrained and of the trained backbone's features", "photo",
         lambda path: figures.feature_space_of_run(opened(), path, device)[0]),
        ("neighbours", "Images and their nearest neighbours by the trained features", "photo",
         lambda path: neighbours_of_run(opened(), path, device)[0]),
        ("views", "Images as student and teacher see them", "photo",
         lambda path: _views(opened(), path)),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        return [
            {"title": title, "alt": alt, "kind": kind, **_drawn(draw, Path(folder) / title, run)}
            for title, alt, kind, draw in drawn
        ]


def _views(run: Run, path: Path) -> Path:
    path = path.with_suffix(".png")
    contact_sheet.of_config(run.cfg, images=4).save(path)
    return path


def _drawn(draw: Callable[[Path], Path], path: Path, run: Evaluated) -> dict:
    try:
        with Image.open(draw(path)) as picture:
            picture = picture.convert("RGB")
    except (UserError, RunFault) as error:
        log.warning("%s: no %s on the page: %s", run.dir, path.name, error)
        return {"image": None}
    picture.thumbnail((WIDEST, 10 * WIDEST))
    content = io.BytesIO()
    picture.save(content, "webp", quality=90)
    text = base64.b64encode(content.getvalue()).decode()
    return {"image": f"data:image/webp;base64,{text}", "width": picture.width,
            "height": picture.height}  # fmt: skip
