"""Average precision against loops."""

from itertools import pairwise

import numpy as np
import pytest

from ressl_plugin.evaluate.lowshot import average_precision
from ressl_plugin.utils.errors import UserError


def cases():
    rng = np.random.default_rng(0)
    for n, ties in [(1, False), (7, False), (50, False), (50, True), (400, True)]:
        for _ in range(20):
            targets = (rng.random(n) < 0.3).astype(int)
            targets[rng.integers(n)] = 1
            scores = rng.integers(0, 6, n) / 5 if ties else rng.normal(size=n)
            yield targets, scores


def brute_force(targets, scores):
    """(precision, recall) at every threshold, by loops."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        picked = [t for t, s in zip(targets, scores) if s >= threshold]
        points.append((sum(picked) / len(picked), sum(picked) / sum(targets)))
    return points


def test_it_is_the_area_under_the_envelope_by_loops():
    def best_from(recall, points):
        return max((p for p, r in points if r >= recall - 1e-9), default=0)

    for targets, scores in cases():
        points = brute_force(targets, scores)
        recalls = [0.0, *sorted({recall for _, recall in points})]
        area = sum((b - a) * best_from(b, points) for a, b in pairwise(recalls))
        assert average_precision(targets, scores) == pytest.approx(area, abs=1e-6)


def test_a_worked_example():
    """At the positives the precision is 1, 1/2, 3/5: the best from there on 1, 3/5, 3/5."""
    targets, scores = [1, 0, 0, 1, 1], [0.9, 0.8, 0.7, 0.6, 0.5]
    assert average_precision(targets, scores) == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)


def test_ignored_images_do_not_count():
    targets, scores = np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0])
    more = np.r_[targets, -1, -1], np.r_[scores, 3.5, 9.0]
    assert average_precision(*more) == average_precision(targets, scores)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="no positive"):
        average_precision([0, 0, -1], [1, 2, 3])
