"""`ressl knn`: weighted nearest-neighbour classification on frozen features.

The weights are the host's (`WeightedKNNClassifier`): exp(cosine / T), up to a factor that a query's
neighbours share, or 1 / (distance + 1e-5) for euclidean distance. A sweep finds the neighbours once
and votes for every k and T, where the host's class would compute the N_test x N_train distances
anew in each cell; the tests hold each cell equal to its own arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ressl_plugin.evaluate.classifier import check_labels
from ressl_plugin.evaluate.subject import Splits, append_accuracies, device_named, with_overrides
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.knn import nearest, vote

COMMAND = {
    "name": "knn",
    "help": "weighted kNN on features of clean images",
    "arguments": {
        "--k": {"type": "int", "nargs": "+", "help": "neighbours; default: 1 5 10 20 50 100 200"},
        "--temperature": {
            "type": "float",
            "nargs": "+",
            "help": "of the weight exp(cosine / T); default: 0.02 0.05 0.07 0.1 0.2 0.5 1",
        },
        "--distance": {"choices": ("cosine", "euclidean"), "help": "by which neighbours are near"},
    },
}
KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.05, 0.07, 0.1, 0.2, 0.5, 1.0)
DEFAULT_K, DEFAULT_T = 20, 0.07


def evaluate(
    path, overrides, k=None, temperature=None, distance="cosine", device="auto"
) -> list[dict]:
    """A sweep on a run's features, or the cells asked for: printed, then added to its records.

    Example:
        >>> evaluate("runs/mine", [], k=[20], temperature=[0.07])  # doctest: +SKIP
    """
    if temperature and distance == "euclidean":
        raise UserError("--temperature is of cosine distance; leave it out with euclidean")
    cells = k or KS, temperature or TEMPERATURES, distance
    check_cells(*cells)
    run = with_overrides(path, overrides)
    splits = Splits(run, device_named(device))
    found = sweep(*splits.of(run.backbone()), *cells, splits.device)
    # all is printed before any of it is written: a full disk must not cost the numbers
    for cell in found["records"]:
        name = _cell_name(cell)
        print(f"kNN {name:<28} top-1 {cell['top1']:6.2f}   top-5 {cell['top5']:6.2f}")
    best = found["best"]
    print(f"best (chosen on these test images): k={best['k']} top-1 {best['top1']:.2f}", flush=True)
    return append_accuracies(run, "knn", {_cell_name(cell): cell for cell in found["records"]})


def _cell_name(cell: dict) -> str:
    at = "" if cell["temperature"] is None else f" T={cell['temperature']:g}"
    return f"k={cell['k']} {cell['distance']}{at}"


def sweep(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    ks: Sequence[int] = KS,
    temperatures: Sequence[float] = TEMPERATURES,
    distance: str = "cosine",
    device: str | torch.device = "cpu",
) -> dict:
    """kNN accuracy over k, at most the number of training images, and temperature.

    Returns:
        {"records": [{distance, k, temperature (None for euclidean), top1, top5}, ...],
         "best": the record of highest top-1, chosen on the test set}.

    Raises:
        UserError: labels missing, an unknown distance, no usable k or temperature.
    """
    check_cells(ks, temperatures, distance)
    check_labels(train_x, train_y, test_x, test_y, "kNN")
    ks = sorted({min(int(k), len(train_x)) for k in ks})
    # of euclidean distance there is one vote, without a temperature
    temperatures = sorted({float(t) for t in temperatures}) if distance == "cosine" else [None]
    train_x, train_y = train_x.to(device).float(), train_y.to(device)
    test_x, test_y = test_x.to(device).float(), test_y.to(device)
    classes = int(max(train_y.max(), test_y.max())) + 1
    near, labels = nearest(train_x, train_y, test_x, ks[-1], distance)
    records = []
    for k in ks:
        for t in temperatures:
            top1, top5 = vote(near[:, :k], labels[:, :k], test_y, classes, t)
            cell = {"distance": distance, "k": k, "temperature": t}
            records.append({**cell, "top1": top1, "top5": top5})
    return {"records": records, "best": max(records, key=lambda r: r["top1"])}


def default_cell(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> dict:
    """The record of the host's defaults: k=20, T=0.07, cosine."""
    return sweep(train_x, train_y, test_x, test_y, [DEFAULT_K], [DEFAULT_T])["records"][0]


def check_cells(ks: Sequence[int], temperatures: Sequence[float], distance: str) -> None:
    """Raise UserError for what a sweep cannot do, before features are extracted for it."""
    for k in ks:
        if k < 1:
            raise UserError(f"kNN: k = {k}; k must be at least 1")
    for t in temperatures:
        if not 0 < t < math.inf:
            raise UserError(f"kNN: temperature = {t}; it must be finite and above 0")
    if distance not in ("cosine", "euclidean"):
        raise UserError(f"kNN: distance '{distance}' unknown; cosine or euclidean")
