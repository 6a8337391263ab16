"""Nearest neighbours of query images under weak and contrastive views (Fig. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.plot_style import (
    COLUMN,
    SMALL,
    figure_of,
    fitted,
    need_matplotlib,
    width_of,
)

WRONG = "#D81B1B"
QUERY = "#222222"
PLAIN = "#CCCCCC"  # a picture that is white at its border would have no edge


def nearest(queries: Tensor, bank: Tensor, k: int = 10) -> Tensor:
    """Indices (Q, k) of the bank's rows (N, d) of highest cosine with each query (Q, d)."""
    similarity = F.normalize(queries.float()) @ F.normalize(bank.float()).t()
    return similarity.topk(min(k, len(bank)), dim=1).indices


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
        path: where to, without suffix.
        class_names: names by label, written beside the rows, cut where they are long.

    Returns:
        Paths of the PNG and the PDF.

    Raises:
        UserError: nothing to draw.
    """
    need_matplotlib()
    query_targets, bank_targets = np.asarray(query_targets), np.asarray(bank_targets)
    if not panels or len(query_targets) == 0:
        raise UserError("neighbours: no query images")
    labelled = query_targets.min() >= 0 and bank_targets.min() >= 0
    first = np.asarray(next(iter(panels.values()))[1])
    queries, k = first.shape
    # cells: query, a gap, k neighbours; one line for each panel's title
    gap, title = 0.35, 0.16
    names = [_name(target, class_names) for target in query_targets]
    margin = 0.06 + max(map(width_of, names))
    side = (COLUMN - margin - 0.02) / (k + 1 + gap)
    block = title + queries * side
    height = len(panels) * block + 0.18
    with figure_of(height, path, layout=None) as (figure, paths):
        for number, (name, (images, indices)) in enumerate(panels.items()):
            top = height - number * block - title
            wrong = bank_targets[np.asarray(indices)] != query_targets[:, None]
            if labelled:
                right = 100 * (1 - wrong.mean())
                name = f"{name}: {right:.0f} % of the neighbours of the query's class"
            _text(figure, height, 0.02, top + 0.04, name)
            for q in range(queries):
                y = top - (q + 1) * side
                _text(figure, height, margin - 0.03, y + side / 2, names[q], "right", "center")
                _cell(figure, height, margin, y, side, images[q], QUERY)
                for j in range(k):
                    x = margin + (j + 1 + gap) * side
                    frame = WRONG if labelled and wrong[q, j] else PLAIN
                    _cell(figure, height, x, y, side, bank_images[int(indices[q][j])], frame)
        _text(figure, height, margin, 0.05, "query")
        legend = "nearest first; red: another class" if labelled else "nearest first"
        _text(figure, height, margin + (1 + gap) * side, 0.05, legend)
    return paths


def _name(target, class_names):
    if target < 0:
        return ""
    return fitted(str(class_names[target]) if class_names is not None else str(target), 0.66)


def _text(figure, height, x, y, text, ha="left", va="baseline"):
    figure.text(x / COLUMN, y / height, text, ha=ha, va=va, fontsize=SMALL, parse_math=False)


def _cell(figure, height, x, y, side, image, frame):
    """One picture at (x, y) inches from the lower left."""
    pad = 0.06 * side
    place = (x + pad) / COLUMN, (y + pad) / height
    ax = figure.add_axes([*place, (side - 2 * pad) / COLUMN, (side - 2 * pad) / height])
    image = np.asarray(image)
    ax.imshow(image if image.dtype == np.uint8 else image.clip(0, 1), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(True)
    ax.spines[:].set(color=frame, linewidth={QUERY: 0.6, PLAIN: 0.4}.get(frame, 1.4))


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

    Args:
        run: has `cfg` and `backbone()`; see `ressl_plugin.run.Run`.

    Raises:
        UserError: images are missing.
    """
    from torchvision import transforms

    from ressl_plugin import data
    from ressl_plugin.evaluate.features import extract
    from ressl_plugin.views import batched

    cfg, backbone = run.cfg, run.backbone()
    size = data.crop_size(cfg)
    loader = data.evaluation_loader(cfg, "train", need_labels=False)
    bank, targets = extract(backbone, loader, device)
    stored = round(size * 256 / 224) if size >= 96 else size
    fit = [transforms.Resize(stored), transforms.CenterCrop(stored), transforms.PILToTensor()]
    pictures = transforms.Compose(fit)
    train = data.build_dataset(cfg, "train", pictures)
    there = cfg.data.val_path is not None or data.row_of(cfg).torchvision
    held_out = split == "val" and there
    val = data.build_dataset(cfg, "val", pictures) if held_out else train

    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(val), generator=generator).tolist()
    seen: dict[int, list[int]] = {}
    for i in order:
        seen.setdefault(int(val.targets[i]), []).append(i)
    turns = max(map(len, seen.values()))
    rows = [members[t] for t in range(turns) for members in seen.values() if t < len(members)]
    rows = sorted(rows[:queries], key=lambda i: int(val.targets[i]))
    images = torch.stack([val[i][0] for i in rows])

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in data.mean_std(cfg))
    views = data.view_recipe(cfg)
    drawn = batched.draw(images, views, generator)
    panels = {}
    for name, crop in (("weak view", views.teacher), ("contrastive view", views.student[0])):
        batch = [(drawn[crop], torch.zeros(len(rows)))]
        features, _ = extract(backbone, batch, device, progress=False)
        seen_by_network = (drawn[crop] * std + mean).permute(0, 2, 3, 1).numpy()
        found = nearest(features, bank, k if held_out else k + 1).numpy()
        if not held_out:
            found = np.stack([others(near, row) for near, row in zip(found, rows)])
        panels[name] = (seen_by_network, found)
    return neighbours(
        panels,
        _Pictures(train),
        targets.numpy(),
        [int(val.targets[i]) for i in rows],
        path,
        val.classes,
    )


def others(near, row):
    """`near` without `row`, or without its last where the view is far from its own image."""
    return near[near != row][: len(near) - 1]


class _Pictures:
    """Images of a data set, read when asked for: (H, W, 3) uint8."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        return self.dataset[index][0].permute(1, 2, 0).numpy()
