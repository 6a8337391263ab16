"""Average precision in its three usages."""

from __future__ import annotations

import numpy as np

from ressl_plugin.utils.errors import UserError

IGNORE = -1  # label of an image that is neither positive nor negative for a class


def average_precision(targets, scores, kind: str = "area") -> float:
    """Average precision of one class, in [0, 1].

    Args:
        targets: (N,) 1 positive, 0 negative, -1 ignored.
        scores: (N,) higher is more positive. Equal scores share a threshold.
        kind: "area", under the step curve without interpolation (scikit-learn's); "voc", under the
            monotone envelope (the low-shot benchmark's and VOC2010's); or "11point", the mean
            envelope at recall 0, .1, ... 1 (VOC2007's).

    Raises:
        UserError: no positive image, or an unknown kind.
    """
    targets, scores = np.asarray(targets, dtype=int), np.asarray(scores, dtype=np.float64)
    scores, positive = scores[targets != IGNORE], targets[targets != IGNORE] > 0
    if not positive.any():
        raise UserError("average precision: the test set has no positive image of a class")
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], positive[order]
    ends = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]  # last of each equal score
    hits = np.cumsum(positive)[ends]
    precision, recall = hits / (ends + 1), hits / positive.sum()
    if kind == "area":
        return float(np.sum(np.diff(np.r_[0, recall]) * precision))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if kind == "voc":
        return float(np.sum(np.diff(np.r_[0, recall]) * envelope))
    if kind == "11point":
        at = [envelope[recall >= t - 1e-12].max(initial=0) for t in np.linspace(0, 1, 11)]
        return float(np.mean(at))
    raise UserError(f"average precision: kind '{kind}' unknown; one of area, voc, 11point")
