"""The weighted vote of nearest neighbours, as the host defines it.

One implementation for the metric of the host's class, the online kNN and `ressl knn`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # added to a euclidean distance
PAIRS = int(5e6)  # similarities computed at a time
VOTES = 4096  # test images whose votes are counted at a time


def labelled(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows whose label is not -1; no copy where that is every row."""
    known = labels >= 0
    return (features, labels) if known.all() else (features[known], labels[known])


def nearest(
    train: Tensor,
    labels: Tensor,
    test: Tensor,
    k: int,
    distance: str = "cosine",
    epsilon: float = EPSILON,
    pairs: int = PAIRS,
) -> tuple[Tensor, Tensor]:
    """Of every row of `test` (M, d) the k nearest of `train` (N, d), with labels (N,).

    Returns:
        Cosine similarities, or 1 / (distance + epsilon) if euclidean, and labels: both
        (M, min(k, N)), nearest first. In float32 if the features have half precision.
    """
    half = train.dtype in (torch.float16, torch.bfloat16)
    train = train.float() if half else train  # exp(1 / 0.07) is beyond half precision
    test = test.to(train.dtype)
    if distance == "cosine":
        # in place where it is a copy already: the training features may be many gigabytes
        train, test = F.normalize(train, out=train if half else None), F.normalize(test)
    found = []
    # with ImageNet's 1.3 million rows, the host's bound alone would mean three rows at a time
    for features in test.split(max(64, pairs // max(1, len(train)))):
        if distance == "cosine":
            similarity = features @ train.t()
        else:
            similarity = 1 / (torch.cdist(features, train) + epsilon)
        near, where = similarity.topk(min(k, len(train)))
        found.append((near, labels[where]))
    return tuple(map(torch.cat, zip(*found)))


def vote(
    near: Tensor, labels: Tensor, targets: Tensor, classes: int, temperature: float | None
) -> tuple[float, float]:
    """Accuracy@1 and @5 (per cent) of the vote of neighbours, as `nearest` gives them.

    temperature: a neighbour counts exp(similarity / temperature); None: what `near` says, which
    is right for euclidean distance. With fewer than five neighbours or classes, top-5 is over all.
    """
    hits = torch.zeros(2, dtype=torch.long)
    for weights, voted, right in zip(*(x.split(VOTES) for x in (near, labels, targets))):
        if temperature is not None:
            # relative to the nearest: exp(1 / T) is beyond float32 from T = 0.0112 down
            weights = weights.double()
            weights = ((weights - weights.amax(1, keepdim=True)) / temperature).exp()
        votes = weights.new_zeros(len(weights), classes).scatter_add_(1, voted, weights)
        ranked = votes.argsort(1, descending=True)[:, : min(5, near.size(1))]
        hit = ranked == right[:, None]
        hits += torch.stack([hit[:, 0].sum(), hit.any(1).sum()]).cpu()
    return tuple((100.0 * hits.double() / len(targets)).tolist())
