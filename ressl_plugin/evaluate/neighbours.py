"""Nearest neighbours of query images under weak and contrastive views (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ressl_plugin import data
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.subject import held_out
from ressl_plugin.utils.knn import nearest
from ressl_plugin.utils.plot_style import COLUMN, SMALL, figure_of, shortened
from ressl_plugin.views import batched

WRONG = "#D81B1B"
QUERY = "#222222"
PLAIN = "#CCCCCC"  # a picture that is white at its border would have no edge


def neighbours(
    panels: dict[str, tuple],
    bank_images,
    bank_targets,
    query_targets,
    path: str | Path,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Rows of a query and its nearest images, those of another class framed in red.

    Without a label for every image nothing is said of classes.

    Args:
        panels: title -> (query images (Q, H, W, 3) as the network saw them, indices (Q, k) into the
            bank, nearest first); one block of rows each, "weak" and "contrastive" in the paper.
        bank_images: (N, H, W, 3), uint8 or floats in [0, 1], anything indexable by integer.
        bank_targets: (N,), query_targets: (Q,), -1 for no label.
        path: of PNG and PDF, without suffix.
        class_names: names by label, written beside the rows, cut where they are long.
    """
    query_targets, bank_targets = np.asarray(query_targets), np.asarray(bank_targets)
    labelled = query_targets.min() >= 0 and bank_targets.min() >= 0
    names = [_name(target, class_names) for target in query_targets]
    queries, k = np.shape(next(iter(panels.values()))[1])
    first = 1.35  # of the columns of neighbours, in pictures; the query is at 0
    side = COLUMN / (k + first + 2)  # about the room that names and gaps leave, in inches
    with figure_of(len(panels) * (queries * side + 0.25) + 0.1, path) as (figure, paths):
        axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for ax, (title, (images, indices)) in zip(axes, panels.items()):
            wrong = bank_targets[np.asarray(indices)] != query_targets[:, None]
            if labelled:
                right = 100 * (1 - wrong.mean())
                title = f"{title}: {right:.0f} % of the neighbours of the query's class"
            for q in range(queries):
                _picture(ax, 0, q, images[q], QUERY)
                for j in range(k):
                    frame = WRONG if labelled and wrong[q, j] else PLAIN
                    _picture(ax, first + j, q, bank_images[int(indices[q][j])], frame)
            ax.set(xlim=(-0.02, first + k), ylim=(queries, 0), aspect="equal")
            ax.set_title(title, loc="left", fontsize=SMALL, pad=2)
            ax.set_yticks(np.arange(queries) + 0.5, names, parse_math=False)
            ax.set_xticks([])
            ax.tick_params(length=0, pad=1)
            ax.spines[:].set_visible(False)
        legend = "nearest first; red: another class" if labelled else "nearest first"
        axes[-1].set_xticks([0, first], ["query", legend], ha="left")
    return paths


def _name(target: int, class_names) -> str:
    if target < 0:
        return ""
    return shortened(str(target if class_names is None else class_names[target]), 14)


def _picture(ax, x: float, y: float, image, frame: str) -> None:
    """A picture one unit wide, its upper left corner at (x, y), with a frame of that colour."""
    image, low, high = np.asarray(image), 0.06, 0.94
    image = image if image.dtype == np.uint8 else image.clip(0, 1)
    corners = x + low, x + high, y + high, y + low
    ax.imshow(image, extent=corners, interpolation="nearest")
    around = [x + low, x + high, x + high, x + low], [y + low, y + low, y + high, y + high]
    width = {QUERY: 0.6, PLAIN: 0.4, WRONG: 1.4}[frame]
    ax.fill(*around, facecolor="none", edgecolor=frame, linewidth=width, zorder=3)


def neighbours_of_run(
    run,
    path: str | Path,
    device="cpu",
    queries: int = 5,
    k: int = 10,
    seed: int = 0,
    split: str = "val",
) -> list[Path]:
    """`neighbours` of a run: queries from the validation images, neighbours among the training's.

    Each query is of another class where there are as many; it is seen once by the run's weak view
    (the teacher's) and once by its first contrastive view, the bank without augmentation. Without
    validation images the queries are training images, and no neighbour is the query itself.
    """
    cfg, backbone = run.cfg, run.backbone()
    loader = data.evaluation_loader(cfg, "train", need_labels=False)
    bank, targets = extract(backbone, loader, device)
    pictures = data.picture_transform(cfg)
    train = data.build_dataset(cfg, "train", pictures)
    others = split == "val" and held_out(cfg)  # than those of the bank
    asked = data.build_dataset(cfg, "val", pictures) if others else train

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(asked), generator=generator).tolist()
    of_a_class = {int(asked.targets[i]): i for i in order}
    rows = list(dict.fromkeys([*of_a_class.values(), *order]))[:queries]
    rows = sorted(rows, key=lambda i: int(asked.targets[i]))

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in data.mean_std(cfg))
    views = data.view_recipe(cfg)
    drawn = batched.draw(torch.stack([asked[i][0] for i in rows]), views, generator)
    panels, crops = {}, {"weak view": views.teacher, "contrastive view": views.student[0]}
    if len({replace(views.crops[crop], role="") for crop in crops.values()}) == 1:
        crops = {"view": views.student[0]}  # of a method whose views are alike
    for name, crop in crops.items():
        batch = [(drawn[crop], torch.zeros(len(rows)))]
        features, _ = extract(backbone, batch, device, progress=False)
        _, found = nearest(bank, torch.arange(len(bank)), features, k if others else k + 1)
        if not others:
            found = np.stack([without(near, row) for near, row in zip(found.numpy(), rows)])
        panels[name] = ((drawn[crop] * std + mean).permute(0, 2, 3, 1).numpy(), found)
    shown = {int(i) for _, found in panels.values() for i in np.unique(found)}
    bank_images = {i: train[i][0].permute(1, 2, 0).numpy() for i in shown}
    query_targets = [int(asked.targets[i]) for i in rows]
    return neighbours(panels, bank_images, targets, query_targets, path, asked.classes)


def without(near, row):
    """`near` without `row`, or without its last where the view is far from its own image."""
    return near[near != row][: len(near) - 1]
