"""Figures 2 and 3 as the paper draws them, of runs that are there."""

from __future__ import annotations

from pathlib import Path

from ressl_plugin.evaluate import features, figures
from ressl_plugin.evaluate.neighbours import neighbours_of_run
from ressl_plugin.evaluate.subject import Splits, device_named
from ressl_plugin.experiments.paper_cells import Cell
from ressl_plugin.run.directories import open_run


def figure2(cells: list[Cell], out: Path, device: str = "auto") -> list[Path]:
    """Three training images and their ten nearest ones under weak and contrastive views."""
    made = []
    for run in (open_run(cell.run_dir) for cell in cells):
        name = out / ("figure2" if len(cells) == 1 else f"figure2-{run.dir.name}")
        made += neighbours_of_run(run, name, device_named(device), queries=3, split="train")
    return made


def figure3(cells: list[Cell], out: Path, device: str = "auto") -> list[Path]:
    """All training images in the plane by t-SNE, the runs' features side by side."""
    spaces = {}
    for cell in cells:
        run = open_run(cell.run_dir)
        splits = Splits(run, device_named(device))
        loader = splits.loader("train")
        spaces[cell.method], y = features.extract(run.backbone(), loader, splits.device)
    classes = loader.dataset.classes
    return figures.feature_space(spaces, y, out / "figure3", classes)
