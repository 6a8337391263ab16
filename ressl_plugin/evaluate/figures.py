"""`ressl figures`: fit to print in one column: curves, feature space (Fig. 3), neighbours (Fig. 2).

Each function takes data and a path without suffix, writes PNG and PDF, and returns the two paths.
Figures are drawn on their own Agg canvas: no pyplot, no global state.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Subset

from ressl_plugin import data
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.neighbours import neighbours_of_run
from ressl_plugin.evaluate.subject import device_named, method_name, with_overrides
from ressl_plugin.run.metrics import logged, read_metrics
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.plot_style import (
    COLUMN,
    MARKERS,
    PALETTE,
    figure_of,
    need_matplotlib,
    shortened,
)

log = logging.getLogger(__name__)

COMMAND = {
    "name": "figures",
    "help": "curves, feature space, neighbours",
    "arguments": {},
}
MOST = 10_000  # images of a feature space


def evaluate(path, overrides, device="auto") -> list[Path]:
    """A run's curves, feature space (Fig. 3) and neighbours (Fig. 2) into its folder figures/.

    Labels colour the points and frame the neighbours, where there are any.

    Example:
        >>> evaluate("runs/mine", [])  # doctest: +SKIP
    """
    need_matplotlib()
    run = with_overrides(path, overrides)
    folder = run.dir / "figures"
    made = []
    if logged(run.dir):
        size = run.cfg.method_kwargs.get("queue_size")
        try:
            made += curves(run.dir, folder / "curves", size)
        except UserError as error:  # a run in its first epoch
            log.warning("no curves: %s", error)
    place = device_named(device)
    made += feature_space_of_run(run, folder / "features", place)
    made += neighbours_of_run(run, folder / "neighbours", place)
    for file in made:
        print(file)
    return made


def feature_space_of_run(run, path: str | Path, device) -> list[Path]:
    """`feature_space` of the untrained and of the trained backbone, on training images, as the
    paper's."""
    loader = data.evaluation_loader(run.cfg, "train", need_labels=False)
    images = _sample(loader)
    x, y = extract(run.backbone(), images, device)
    untrained, _ = extract(run.backbone(trained=False), images, device)
    spaces = {"untrained": untrained, method_name(run.cfg): x}
    return feature_space(spaces, y, path, loader.dataset.classes)


def _sample(loader: DataLoader) -> DataLoader:
    """The loader's images, or MOST of them drawn with a fixed seed."""
    count = len(loader.dataset)
    if count <= MOST:
        return loader
    rows = np.sort(np.random.default_rng(0).choice(count, MOST, replace=False))
    images = Subset(loader.dataset, rows.tolist())
    return DataLoader(images, loader.batch_size, num_workers=loader.num_workers)


# label of the axis -> {label of the line: columns of metrics.csv, the first found counts}
PANELS = {
    "loss": {"training": ("train_ressl_loss", "train_loss", "loss")},
    "entropy / log K": {"target relation": ("train_target_entropy", "target_entropy")},
    "accuracy (%)": {
        "online linear": ("val_acc1",),
        "kNN": ("val_knn_acc1", "knn_acc1"),
        "teacher, online linear": ("momentum_val_acc1",),
    },
    "effective rank": {"RankMe": ("val_rankme", "train_rankme")},
}


def curves(
    metrics: str | Path,
    path: str | Path,
    queue_size: int | None = None,
    behind: Sequence[str | Path] = (),
) -> list[Path]:
    """Loss, entropy of the target relation over log K, accuracies and RankMe, each per epoch.

    Args:
        metrics: a run directory, or a metrics.csv.
        queue_size: K; with it the loss panel shows log K, where a collapsed run stays.
        behind: metrics of other runs, drawn in grey.

    Raises:
        UserError: nothing to draw in the file.
    """
    columns = read_metrics(Path(metrics))
    panels, others = _panels(columns), []
    for other in behind:
        with contextlib.suppress(UserError):  # one that has only begun has nothing to draw
            others.append(_panels(read_metrics(Path(other))))
    if not panels:
        raise UserError(f"{metrics}: no loss and no accuracy among {', '.join(sorted(columns))}")
    with figure_of(0.95 * len(panels) + 0.35, path) as (figure, paths):
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for ax, (label, lines) in zip(axes, panels.items()):
            for epochs, values in (of for other in others for of in other.get(label, {}).values()):
                ax.plot(epochs + 1, values, color="0.7", lw=0.6, zorder=1)
            for i, (line, (epochs, values)) in enumerate(lines.items()):
                marker = MARKERS[i] if len(epochs) <= 30 else None
                ax.plot(epochs + 1, values, color=PALETTE[i], label=line, marker=marker, ms=2.2)
            ax.set_ylabel(label)
            if label == "loss" and queue_size:
                ax.axhline(math.log(queue_size), color="0.5", lw=0.7, ls="--", label="log K")
            if label == "entropy / log K":
                ax.set_ylim(0, 1.03)
                ax.axhline(1, color="0.5", lw=0.7, ls="--", label="uniform (collapse)")
            if len(ax.get_legend_handles_labels()[0]) > 1:
                ax.legend(frameon=False)
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.get_major_locator().set_params(integer=True)
        first, last = axes[-1].dataLim.intervalx
        if first == last:  # a lone epoch would be given ticks of its hundredths
            axes[-1].set(xlim=(first - 1, first + 1), xticks=[first])
    return paths


def _panels(columns: dict) -> dict[str, dict[str, tuple]]:
    """Of PANELS what there is to draw: label of the axis -> label of the line -> its column."""
    panels = {}
    for label, lines in PANELS.items():
        if label == "loss":
            lines = {line: (*names, *_of_method(columns)) for line, names in lines.items()}
        there = {line: [n for n in names if n in columns] for line, names in lines.items()}
        if found := {line: columns[names[0]] for line, names in there.items() if names}:
            panels[label] = found
    return panels


def _of_method(columns: dict) -> tuple[str, ...]:
    """The losses of the host's methods: train_nce_loss of SimCLR's, train_neg_cos_sim of BYOL's."""
    losses = [n for n in columns if re.fullmatch(r"train_(?!.*class).*(loss|neg_cos_sim)", n)]
    return tuple(sorted(losses))


UNLABELLED = "#AAAAAA"


def embed(features) -> np.ndarray:
    """Features (N, d) in the plane: t-SNE of unit rows, (N, 2)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    x = normalize(np.asarray(features, dtype=np.float32))
    if len(x) < 5:
        raise UserError(f"feature space: {len(x)} images; at least 5 are needed")
    if not np.ptp(x, axis=0).any():  # t-SNE would end in a segmentation fault
        raise UserError("feature space: all features are alike; the network has collapsed")
    if x.shape[1] > 50 and len(x) > 50:
        x = PCA(50, random_state=0).fit_transform(x)
    perplexity = min(30, (len(x) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(x)


def feature_space(
    spaces: dict[str, np.ndarray],
    targets,
    path: str | Path,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Feature spaces coloured by class, one panel a representation (Fig. 3); grey without label.

    Args:
        spaces: title -> features (N, d); two panels stand side by side.
        targets: (N,) labels of the images, the same for all panels; -1: none.
        class_names: names by label; the labels themselves without it.

    Raises:
        UserError: fewer than 5 images.
    """
    targets = np.asarray(targets)
    classes = np.unique(targets[targets >= 0])
    names = [str(class_names[c]) if class_names is not None else str(c) for c in classes]
    columns = min(2, len(spaces))
    rows = math.ceil(len(spaces) / columns)
    with figure_of(rows * (COLUMN / columns + 0.2), path) as (figure, paths):
        figure.get_layout_engine().set(h_pad=0.06)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax in axes[len(spaces) :]:
            ax.set_axis_off()
        for ax, (title, features) in zip(axes, spaces.items()):
            points = embed(features)
            size = float(np.clip(4000 / len(points) / columns, 0.4, 8))
            ax.scatter(*points[targets < 0].T, s=size, color=UNLABELLED, linewidths=0)
            handles = []
            for i, label in enumerate(classes):
                colour, marker = _look(i, len(classes))
                dots = points[targets == label].T
                look = {"s": size, "color": colour, "marker": marker, "linewidths": 0}
                handles.append(ax.scatter(*dots, **look))
            ax.set_title(f"{title} (t-SNE)")
            ax.set(xticks=[], yticks=[])
            ax.set_box_aspect(1)
            ax.spines[:].set_visible(True)
        if 0 < len(names) <= 20:
            _legend(figure, handles, names, math.sqrt(12 / size))
    return paths


def _legend(figure, handles, names: list[str], scale: float) -> None:
    """Names below the panels, in as many columns as fit the width; the figure grows with them."""
    for columns in range(5, 0, -1):
        legend = figure.legend(
            handles,
            [shortened(name, 24) for name in names],
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            markerscale=scale,
            handletextpad=0.1,
            columnspacing=0.9,
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
        if legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height)


def _look(i: int, count: int) -> tuple:
    """Colour and marker of one of `count` classes."""
    if count <= len(PALETTE):
        return PALETTE[i], MARKERS[i]
    import matplotlib as mpl

    return mpl.colormaps["turbo"](i / (count - 1)), "o"
