"""Logistic regression on frozen features, taken to its optimum.

The fast linear probe: no learning rate that has to suit the features, as the paper's 30 suits the
paper's. Features are standardised, the L2 penalty is chosen on a split of the training set, and
L-BFGS minimises, over W (d, C) and b (C,),

    mean cross-entropy(X W + b) + l2 / 2 |W|^2,

which is scikit-learn's LogisticRegression(C=1 / (l2 * N)) on a StandardScaler's output; the tests
hold the two together. It runs on a GPU, holds the features once in float32, and so takes ImageNet's
(1.3 million x 2048) on one card.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ressl_plugin.evaluate.classifier import check_labels, topk_accuracy
from ressl_plugin.evaluate.sampling import stratified_draw
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.precision import float32_products

NAME = "logistic regression, cached features"  # of its records
PENALTIES = tuple(10 ** (-n / 2) for n in range(13))  # 1 ... 1e-6, strongest first
PATIENCE = 3  # weaker penalties tried in vain after the best; the weakest take the longest
HELD_OUT = 5  # one image in so many, of each class, chooses the penalty
ENTRIES = 2**26  # features or logits computed with at a time
STEPS = 1000  # of L-BFGS, far more than it needs


def probe(
    features_train: Tensor,
    y_train: Tensor,
    features_test: Tensor,
    y_test: Tensor,
    penalties: tuple[float, ...] = PENALTIES,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict:
    """Accuracy of the optimum, its penalty chosen on a fifth of the training images.

    Args:
        features_train: (N, d), y_train: (N,), features_test: (M, d), y_test: (M,).
        penalties: candidates for l2; with one there is nothing to choose.
        seed: draws the fifth.

    Returns:
        {"top1", "top5" (%), "loss" (training cross-entropy), "l2"}.

    Raises:
        UserError: labels missing, fewer than two classes, or one image in every class.

    Example:
        >>> probe(*features, device="cuda")["top1"]  # doctest: +SKIP
    """
    check_labels(features_train, y_train, features_test, y_test)
    kept, held = split(y_train, seed)
    order = torch.cat([kept, held])
    names, y = y_train[order].unique(return_inverse=True)
    classes, y = len(names), y.to(device)
    # copies, which are turned in place: ImageNet's features are 10 GB
    x = features_train[order].to(device, torch.float32)
    x, test = _principal(x, features_test.to(device, torch.float32, copy=True))
    with float32_products():
        l2 = penalties[0]
        if len(penalties) > 1:
            l2 = _chosen(x, y, len(kept), classes, penalties)
        weight, bias, loss = next(fit(x, y, classes, [l2]))
        targets = _places(y_test, names).to(device)
        top1, top5 = topk_accuracy(test @ weight + bias, targets)
    return {"top1": top1, "top5": top5, "loss": loss, "l2": l2}


def _places(labels, names):
    """Where each label stands in `names`, sorted; -1, never right, for one without training."""
    places = torch.searchsorted(names, labels).clamp_max(len(names) - 1)
    return torch.where(names[places] == labels, places, -1)


def split(targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the images that fit and of those that choose: a fifth of each class, at least one
    where a class has two."""
    held = stratified_draw(targets.cpu(), lambda n: max(n // HELD_OUT, int(n > 1)), seed)
    if len(held) == 0:
        raise UserError(
            "linear: every class has one image, so none is left to choose the L2 penalty on; "
            "`ressl compare` needs none"
        )
    kept = np.setdiff1d(np.arange(len(targets)), held)
    return torch.from_numpy(kept), torch.from_numpy(held)


def _chosen(x, y, count, classes, penalties):
    """The penalty of highest accuracy on the rows from `count` on; of equals the lowest loss's.

    After PATIENCE of them without a better one the rest is not tried.
    """
    held, targets = x[count:], y[count:]
    best, chosen, in_vain = (-1.0, 0.0), None, 0
    for l2, (weight, bias, _) in zip(penalties, fit(x[:count], y[:count], classes, penalties)):
        logits = held @ weight + bias
        accuracy = topk_accuracy(logits, targets, (1,))[0]
        score = accuracy, -F.cross_entropy(logits, targets).item()
        if score > best:
            best, chosen, in_vain = score, l2, 0
        else:
            in_vain += 1
        if in_vain == PATIENCE:
            break
    return chosen


def fit(x: Tensor, y: Tensor, classes: int, penalties) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(W (d, C), b (C,), training cross-entropy) at the optimum, for one penalty after the other.

    x: (N, d) float32, on principal axes: any others give the same, more slowly; y: (N,).
    """
    # of the loss along each axis at the start, and of the bias, the last row of the weights
    curvature = torch.linalg.vector_norm(x, dim=0).double().square() / len(x)
    curvature = torch.cat([curvature, curvature.new_ones(1)]) / classes
    weights = x.new_zeros(x.shape[1] + 1, classes, dtype=torch.float64)
    for l2 in penalties:
        weights = _optimum(x, y, weights, curvature, l2)
        with torch.no_grad():
            loss = sum(part.item() for part in _cross_entropy(x, y, weights))
        weight = weights.to(x.dtype)
        yield weight[:-1], weight[-1], loss


def _optimum(x, y, start, curvature, l2):
    # In units of the curvature: L-BFGS takes tens of steps where axes of all scales need thousands.
    scale = (curvature + l2).rsqrt()[:, None]
    v = (start / scale).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [v],
        max_iter=STEPS,
        history_size=20,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective():
        weights = (scale * v).detach().requires_grad_()
        penalty = l2 / 2 * weights[:-1].square().sum()
        total = 0.0
        for part in chain([penalty], _cross_entropy(x, y, weights)):
            part.backward()
            total += part.detach()
        v.grad = scale * weights.grad
        return total

    optimizer.step(objective)
    return (scale * v).detach()


def _cross_entropy(x, y, weights):
    """The mean loss of `weights` (d + 1, C), in float64, its share of a slice of rows at a time."""
    for rows, targets in zip(*(part.split(_rows(x, weights.shape[1])) for part in (x, y))):
        weight, bias = weights[:-1].to(x.dtype), weights[-1].to(x.dtype)
        loss = F.cross_entropy(torch.addmm(bias, rows, weight), targets, reduction="none")
        yield loss.sum(dtype=torch.float64) / len(x)


def _principal(x: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both standardised by x's mean and deviation and turned to x's principal axes.

    The penalty does not feel the turn. A column without deviation stays 0.
    """
    mean = torch.stack([r.sum(0, dtype=torch.float64) for r in x.split(_rows(x))]).sum(0) / len(x)
    moments = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=x.device)
    for rows in x.split(_rows(x)):
        centred = rows.double() - mean
        moments += centred.t() @ centred
    deviation = (moments.diagonal() / len(x)).sqrt()
    scale = torch.where(deviation > 1e-6 * mean.abs(), 1 / deviation, 0)
    _, axes = torch.linalg.eigh(moments * scale * scale[:, None])
    turn = scale[:, None] * axes
    for part in (x, test):
        for rows in part.split(_rows(x)):
            rows.copy_((rows.double() - mean) @ turn)
    return x, test


def _rows(x, width=0):
    return max(1, ENTRIES // max(x.shape[1], width))
