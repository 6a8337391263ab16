"""Figures 2 and 3 as the paper draws them, of runs that are there."""

from __future__ import annotations

from pathlib import Path

from ressl_plugin.evaluate import features, figures
from ressl_plugin.evaluate.neighbours import neighbours_of_run
from ressl_plugin.evaluate.subject import Splits, device_named, method_name
from ressl_plugin.run.directories import open_run


def figure2(runs: list[Path], out: Path, device: str = "auto") -> list[Path]:
    """Three training images and their ten nearest ones under weak and contrastive views."""
    made = []
    for run in runs:
        name = out / ("figure2" if len(runs) == 1 else f"figure2-{run.name}")
        made += neighbours_of_run(
            open_run(run), name, device_named(device), queries=3, split="train"
        )
    return made


def figure3(runs: list[Path], out: Path, device: str = "auto") -> list[Path]:
    """All training images in the plane by t-SNE, the runs' features side by side."""
    spaces = {}
    for opened in map(open_run, runs):
        splits = Splits(opened, device_named(device))
        loader = splits.loader("train")
        x, y = features.extract(opened.backbone(), loader, splits.device)
        spaces[method_name(opened.cfg)] = x
    classes = loader.dataset.classes
    return figures.feature_space(spaces, y, out / "figure3", classes)
