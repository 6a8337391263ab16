"""Seeded draws of labelled images."""

from __future__ import annotations

import numpy as np

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
