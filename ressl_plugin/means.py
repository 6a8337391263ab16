"""Means over an epoch, kept on the device so that no step waits for the host."""

from __future__ import annotations

from torch import Tensor


class Means:
    """Weighted means of named scalars, in groups that are emptied when read."""

    def __init__(self):
        self._sums: dict[str, dict[str, Tensor]] = {}
        self._weights: dict[str, dict[str, int | Tensor]] = {}

    def add(self, values: dict[str, Tensor], weight: int | Tensor, group: str = "train") -> None:
        """Add one batch's scalars; `weight` is the number of images behind them."""
        sums = self._sums.setdefault(group, {})
        weights = self._weights.setdefault(group, {})
        for name, value in values.items():
            term = value.detach().float() * weight
            sums[name] = sums[name] + term if name in sums else term
            weights[name] = weights.get(name, 0) + weight

    def pop(self, group: str = "train") -> dict[str, Tensor]:
        """The means so far; the group starts anew."""
        sums, weights = self._sums.pop(group, {}), self._weights.pop(group, {})
        return {name: total / max(weights[name], 1) for name, total in sums.items()}
