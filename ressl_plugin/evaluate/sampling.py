"""Seeded draws of labelled images, and what several draws come to."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

IGNORE = -1  # label of an image that is neither positive nor negative for a class


def stratified_draw(targets, count: int | Callable[[int], int], seed: int) -> np.ndarray:
    """Indices of images drawn from every class, sorted; the same for a seed.

    Args:
        count: images of each class, or a function of how many images the class has.

    Raises:
        UserError: a class has too few images.
    """
    targets, generator = np.asarray(targets), np.random.default_rng(seed)
    rows = []
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        wanted = count(len(members)) if callable(count) else count
        if len(members) < wanted:
            raise UserError(
                f"class {label} has {len(members)} images, too few for {wanted} labels a class"
            )
        rows.append(generator.choice(members, wanted, replace=False))
    return np.sort(np.concatenate(rows))


def there_are(counts: Sequence[int | str], targets: Sequence[int]) -> list[int | str]:
    """Those of the numbers of labels a class that the smallest class has, with a warning for the
    others; words (all, full) stay."""
    smallest = min(Counter(targets).values())
    more = [n for n in counts if not isinstance(n, str) and n > smallest]
    if more:
        log.warning(
            "left out: %s labels a class; the smallest class has %d training images",
            ", ".join(map(str, more)), smallest,
        )  # fmt: skip
    return [n for n in counts if n not in more]


def draw(targets, shots: int | str, seed: int, sampling: str = "image") -> tuple:
    """(rows, labels) of one low-shot draw: images, maybe some twice, and their (len(rows), classes)
    labels 1, 0, and -1 where not used.

    Args:
        targets: (N, classes) with 1, 0, -1.
        shots: K, or "full" (all images, the labels as they are).
        sampling: "image": K images of each class, with all the labels they have, once for each
            class that they are drawn for; "class": K positives and (classes - 1) K negatives, drawn
            for each class on its own.

    Raises:
        UserError: a class has fewer than K positives.
    """
    if shots == "full":
        return np.arange(len(targets)), targets
    generator = np.random.default_rng(seed)
    classes = targets.shape[1]
    chosen, drawn = np.full_like(targets, IGNORE), []
    for c in range(classes):
        positive, negative = (np.flatnonzero(targets[:, c] == value) for value in (1, 0))
        if len(positive) < shots:
            raise UserError(
                f"low-shot: class {c} has {len(positive)} positive images, too few for --per-class "
                f"{shots}"
            )
        rows = generator.choice(positive, shots, replace=False)
        drawn.append(rows)
        if sampling == "class":
            wanted = min(len(negative), max(1, classes - 1) * shots)
            chosen[rows, c] = 1
            chosen[generator.choice(negative, wanted, replace=False), c] = 0
    if sampling == "class":
        return np.arange(len(targets)), chosen
    rows = np.concatenate(drawn)
    return rows, targets[rows]


def mean_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (ddof 1); None for that of a single value."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread


def summary(values: Sequence[float], seeds: Sequence[int]) -> dict:
    """{"mean", "spread", "values", "seeds"} of several draws, see `mean_spread`."""
    mean, spread = mean_spread(values)
    return {"mean": mean, "spread": spread, "values": list(values), "seeds": list(seeds)}
