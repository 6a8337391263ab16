"""Means over an epoch, kept on the device so that no step waits for the host."""

from __future__ import annotations

import torch
from torch import Tensor

from ressl_plugin.utils import distributed


class AverageMeter:
    """Weighted means of named scalars, in groups that are emptied when read.

    Sums and weights are the same tensors from first to last, changed in place: a captured step
    adds to where they lay when it was captured.
    """

    def __init__(self):
        # group -> name -> sum (), float32, and weight (), long
        self._totals: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}

    def add(self, values: dict[str, Tensor], weight: int | Tensor, group: str = "train") -> None:
        """Add one batch's scalars; `weight` is the number of images behind them."""
        for name, value in values.items():
            term = value.detach().float() * weight
            for total, one in zip(self._total(group, name, term.device), (term, weight)):
                total.add_(one)

    def _total(self, group: str, name: str, device) -> tuple[Tensor, Tensor]:
        totals = self._totals.setdefault(group, {})
        if name not in totals:
            kinds = (torch.float32, torch.long)
            totals[name] = tuple(torch.zeros((), dtype=kind, device=device) for kind in kinds)
        return totals[name]

    def state(self) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
        """This rank's groups: name -> (sum, weight), on the CPU; a copy."""
        return {
            group: {name: tuple(t.to("cpu", copy=True) for t in pair) for name, pair in of.items()}
            for group, of in self._totals.items()
        }

    def load(self, states: list[dict], device: torch.device | str, counts: bool = True) -> None:
        """Go on from what `state` gave, on this device; several states count together.

        Where they do not count (another rank has them), names without a value are taken over: `pop`
        needs the same ones, in the same order, on all ranks.
        """
        self._zero(*self._totals)
        for state in states:
            for group, pairs in state.items():
                for name, pair in pairs.items():
                    for total, one in zip(self._total(group, name, device), pair):
                        total.add_(one * counts)

    def pop(self, group: str = "train") -> dict[str, Tensor]:
        """The means over all ranks of what was added; the group starts anew. Waits for the device.
        A collective operation."""
        if not (totals := self._totals.get(group)):
            return {}
        # float64: counts of images stay exact, and one exchange does for all
        pairs = torch.stack([torch.stack([s.double(), n.double()]) for s, n in totals.values()])
        sums, weights = distributed.all_reduce(pairs).unbind(1)
        self._zero(group)
        means = zip(totals, (sums / weights).float(), weights.tolist())
        return {name: mean for name, mean, weight in means if weight}

    def _zero(self, *groups: str) -> None:
        for group in groups:
            for total in sum(self._totals[group].values(), ()):
                total.zero_()
