"""Means over an epoch, kept on the device so that no step waits for the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ressl_plugin.utils import distributed


class AverageMeter:
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

    def state(self) -> dict[str, dict[str, tuple[Tensor, int | Tensor]]]:
        """This rank's groups: name -> (sum, weight), on the CPU."""
        return {
            group: {n: (s.cpu(), _on(self._weights[group][n], "cpu")) for n, s in sums.items()}
            for group, sums in self._sums.items()
        }

    def load(self, states: list[dict], device: torch.device | str, counts: bool = True) -> None:
        """Go on from what `state` gave, on this device; several states count together.

        Where they do not count (another rank has them), names without a value are taken over: `pop`
        needs the same ones, in the same order, on all ranks.
        """
        self._sums, self._weights = {}, {}
        for state in states:
            for group, pairs in state.items():
                sums = self._sums.setdefault(group, {})
                weights = self._weights.setdefault(group, {})
                for name, (s, weight) in pairs.items():
                    s, weight = s.to(device), _on(weight, device)
                    if not counts:
                        s, weight = torch.zeros_like(s), 0
                    sums[name] = sums[name] + s if name in sums else s
                    weights[name] = weights.get(name, 0) + weight

    def pop(self, group: str = "train") -> dict[str, Tensor]:
        """The means over all ranks so far; the group starts anew. A collective operation."""
        sums, weights = self._sums.pop(group, {}), self._weights.pop(group, {})
        if not sums:
            return {}
        # float64: counts of images stay exact, and one exchange does for all
        pairs = [
            torch.stack([s.double(), s.new_tensor(float(weights[n])).double()])
            for n, s in sums.items()
        ]
        mean = [(s / n.clamp(min=1)).float() for s, n in distributed.all_reduce(torch.stack(pairs))]
        return dict(zip(sums, mean))


def _on(weight: int | Tensor, device: torch.device | str) -> int | Tensor:
    return weight.to(device) if isinstance(weight, Tensor) else weight
