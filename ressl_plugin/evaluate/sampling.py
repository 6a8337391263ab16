"""Seeded draws of labelled images."""

from __future__ import annotations

import numpy as np

from ressl_plugin.evaluate.average_precision import IGNORE
from ressl_plugin.utils.errors import UserError


def stratified_draw(targets, per_class: int | str, seed: int) -> np.ndarray:
    """Indices of `per_class` images of every class (or "all"), sorted; the same for a seed.

    Raises:
        UserError: a class has too few images.
    """
    targets = np.asarray(targets)
    if per_class == "all":
        return np.arange(len(targets))
    if isinstance(per_class, str) or per_class < 1:
        raise UserError(f"labels a class: '{per_class}'; a positive number or all")
    generator = np.random.default_rng(seed)
    rows = []
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        if len(members) < per_class:
            raise UserError(
                f"class {label} has {len(members)} images, too few for {per_class} labels a class"
            )
        rows.append(generator.choice(members, per_class, replace=False))
    return np.sort(np.concatenate(rows))


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
    targets = np.asarray(targets)
    if sampling not in ("class", "image"):
        raise UserError(f"low-shot: sampling '{sampling}' unknown; class or image")
    if shots == "full":
        return np.arange(len(targets)), targets
    generator = np.random.default_rng(seed)
    classes = targets.shape[1]
    chosen, drawn = np.full_like(targets, IGNORE), []
    for c in range(classes):
        positive, negative = (np.flatnonzero(targets[:, c] == value) for value in (1, 0))
        if len(positive) < shots:
            raise UserError(
                f"low-shot: class {c} has {len(positive)} positive images, K = {shots}; lower K"
            )
        rows = generator.choice(positive, shots, replace=False)
        drawn.append(rows)
        wanted = min(len(negative), max(1, classes - 1) * shots)
        if sampling == "class":
            chosen[rows, c] = 1
            chosen[generator.choice(negative, wanted, replace=False), c] = 0
    if sampling == "class":
        return np.arange(len(targets)), chosen
    rows = np.concatenate(drawn)
    return rows, targets[rows]
