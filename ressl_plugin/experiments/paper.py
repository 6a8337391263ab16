"""`ressl paper NAME`: train and evaluate the cells of one of the paper's tables, then print it.

What the cells are is in scripts/ablation and scripts/paper, one YAML file a table (paper_spec.py).
Each cell is a run directory OUT/<recipe and words>/<cell>. A finished cell is not run again, an
interrupted one is resumed. Two tables share a cell where both have the recipe, the words and the
cell's name in common; the same training under another name is another cell.
"""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

import torch

from ressl_plugin import run
from ressl_plugin.evaluate import features, figures, finetune
from ressl_plugin.evaluate.neighbours import neighbours_of_run
from ressl_plugin.evaluate.subject import Splits, device_named, method_name
from ressl_plugin.evaluate.voc import VOC
from ressl_plugin.experiments import paper_numbers, paper_spec, sweep
from ressl_plugin.experiments.paper_cells import Cell, cells, check_places
from ressl_plugin.experiments.paper_records import evaluate, wanted
from ressl_plugin.experiments.paper_table import paper_table, places
from ressl_plugin.run import checkpoint
from ressl_plugin.train.settling import settled
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.plot_style import need_matplotlib

FORMATS = {"markdown": "md", "latex": "tex", "csv": "csv"}


def reproduce(
    name: str,
    overrides: list[str] = (),
    out: Path = Path("runs/paper"),
    only: list[str] | None = None,
    fast: bool = False,
    voc: Path | None = None,
    device: str = "auto",
    labels: list[str] | None = None,
    chosen: list[str] | None = None,
    dry: bool = False,
) -> str:
    """Run what is missing of a table or figure; print the table and write it under `out`.

    The file, the overrides, the cells that are there and the images are checked before the first
    training. A cell that fails does not keep the others from being run.

    Args:
        name: table1 ... table10, figure2, figure3, or a YAML file.
        overrides: for every cell, after its own words (`max_epochs=20`).
        only: data sets (`data.dataset`) to be run; None: all. The table shows every cell there is.
        fast: linear classifiers on features extracted once.
        voc: the VOCdevkit folder, for Table 9.
        labels: for Table 10, shares or lists of images in place of the file's, as SimCLR's.
        chosen: cells, as `cifar-ressl/simclr`; None: all.
        dry: train nothing, print the cells, what is done of each and its command.

    Raises:
        UserError: no such table, a mistake in its file, an override that cannot work, a cell of
            another config in `out`, data or a device that is not there.
        RunFault: a cell failed; the others are in the table.

    Example:
        >>> reproduce("table1", ["data.download=true"], only=["cifar10"])  # doctest: +SKIP
    """
    spec, out, overrides = paper_spec.read(name), Path(out), list(overrides)
    device_named(device)
    for flag, given, evaluator in (("--voc", voc, "lowshot"), ("--labels", labels, "finetune")):
        if given and evaluator not in spec["evaluate"]:
            raise UserError(f"{flag}: {name} has no {evaluator}; leave it out")
    if not dry and "figure" in spec:
        need_matplotlib()
    with paper_spec.within(paper_spec.find(name)):
        planned = cells(spec, overrides, out)
        if "table" in spec:
            check_places(spec["table"], planned)
        asked = _asked(planned, only, chosen, out)
        for cell in asked:
            sweep.same_experiment(cell.cfg, planning=dry)
        if labels and "finetune" in spec["evaluate"]:
            for word in labels:
                finetune.labels_named(word)
            spec["evaluate"]["finetune"]["labels"] = labels
        if not dry:
            on_voc = "lowshot" in spec["evaluate"]
            if on_voc:
                _check_voc(voc)
            sweep.check_images([cell.cfg for cell in asked], labels=not on_voc)
    if dry:
        command = ["ressl", "paper", name, *overrides, "--out", str(out)]
        command += ["--fast"] if fast else []
        command += ["--voc", str(voc)] if voc else []
        command += ["--labels", *labels] if labels else []
        command += ["--device", device] if device != "auto" else []
        command.append("--cells")
        text = "".join(
            f"{cell.run_dir}: {_state(cell, spec['evaluate'], fast)}\n"
            f"    {shlex.join([*command, cell.name(out)])}\n"
            for cell in asked
        )
        print(text, end="")
        return text

    def work(cell: Cell):
        train(cell)
        for evaluator, settings in spec["evaluate"].items():
            place = None
            if "table" in spec and paper_numbers.tables()[spec["table"]].evaluator == evaluator:
                place = partial(cell.place, spec["table"])
            evaluate(Path(cell.run_dir), evaluator, settings, fast, voc, device, place)

    failed = sweep.each(asked, work)
    text = _printed(spec, planned, out, device) if not failed or "table" in spec else ""
    sweep.report(failed, asked)
    return text


def _asked(
    planned: list[Cell], data: list[str] | None, names: list[str] | None, out: Path
) -> list[Cell]:
    """The cells of these data sets and of these names; None: of all."""
    for flag, given, there in (
        ("--data", data, [cell.cfg.data.dataset for cell in planned]),
        ("--cells", names, [cell.name(out) for cell in planned]),
    ):
        if unknown := [one for one in given or () if one not in there]:
            known = ", ".join(dict.fromkeys(there))
            raise UserError(f"{flag} {' '.join(unknown)}: there are {known}")
    return [
        cell
        for cell in planned
        if (not data or cell.cfg.data.dataset in data) and (not names or cell.name(out) in names)
    ]


def _check_voc(folder: Path | None) -> None:
    if folder is None:
        raise UserError("evaluate: lowshot is on PASCAL VOC07; give its folder: --voc VOCdevkit")
    for split in ("trainval", "test"):
        VOC(folder, split)


def _state(cell: Cell, evaluators: dict, fast: bool) -> str:
    """What `--plan` says is done of a cell."""
    folder = Path(cell.run_dir)
    if not sweep.finished(folder, cell.epochs):
        there = "to be trained"
        if run.has_checkpoint(folder):
            there = f"{run.open_run(folder).epochs} of {cell.epochs} epochs trained"
        return "; ".join([there, *(f"{evaluator}: to be done" for evaluator in evaluators)])
    states = ["trained"]
    for evaluator, settings in evaluators.items():
        found = wanted(folder, evaluator, settings, fast)
        due = [str(what) for what, record in found.items() if not record]
        states.append(f"{evaluator}: {', '.join(due)} to be done" if due else f"{evaluator}: done")
    return "; ".join(states)


def _printed(spec: dict, planned: list[Cell], out: Path, device: str) -> str:
    """The table of what is there, printed and written under `out`; a figure once all cells are."""
    if "figure" in spec:
        is_done = lambda cell: sweep.finished(Path(cell.run_dir), cell.epochs)
        missing = [cell.name(out) for cell in planned if not is_done(cell)]
        if missing:
            names = ", ".join(missing)
            print(f"Figure {spec['figure']} is not drawn: still to be trained: {names}")
            return ""
        draw = {2: figure2, 3: figure3}[spec["figure"]]
        for file in draw(planned, out, device_named(device)):
            print(file)
    if "table" not in spec:
        return ""
    number = spec["table"]
    folders = [Path(cell.run_dir) for cell in planned if Path(cell.run_dir).is_dir()]
    folders = [folder for folder in folders if places(folder, number)]
    texts = {format: paper_table(number, folders, format) for format in FORMATS}
    for format, suffix in FORMATS.items():
        files.replace(out / f"table{number}.{suffix}", texts[format].encode())
    print(texts["markdown"])
    return texts["markdown"]


def figure2(cells: list[Cell], out: Path, device: torch.device) -> list[Path]:
    """Three training images and their ten nearest ones under weak and contrastive views."""
    made = []
    for opened in (run.open_run(cell.run_dir) for cell in cells):
        name = out / ("figure2" if len(cells) == 1 else f"figure2-{opened.dir.name}")
        made += neighbours_of_run(opened, name, device, queries=3, split="train")
    return made


def figure3(cells: list[Cell], out: Path, device: torch.device) -> list[Path]:
    """All training images in the plane by t-SNE, the runs' features side by side."""
    spaces = {}
    for cell in cells:
        opened = run.open_run(cell.run_dir)
        loader = Splits(opened, device).loader("train")
        title = cell.row or method_name(cell.cfg)
        spaces[title], y = features.extract(opened.backbone(), loader, device)
    return figures.feature_space(spaces, y, out / "figure3", loader.dataset.classes)


def train(cell: Cell) -> None:
    """Train a cell unless it is finished; `random` is the backbone as it is initialised."""
    cfg, folder = cell.cfg, Path(cell.run_dir)
    if cfg.method != "random":
        sweep.train(cfg)
        return
    if sweep.finished(folder, cell.epochs):
        return
    cfg = settled(cfg)
    run.start(cfg, cfg)
    network = run.Run(folder, cfg, folder).backbone(trained=False)
    state = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    checkpoint.save(folder / checkpoint.NAME, {"state_dict": state, "epoch": 0, "global_step": 0})
