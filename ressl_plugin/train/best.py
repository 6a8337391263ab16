"""Which epoch's checkpoint is the best so far: `checkpoint.best`."""

from __future__ import annotations

import math

# criterion -> names in the log, the first that is there counts; its score, the higher the better
CRITERIA = {
    "knn": (("val_knn_acc1",), float),
    "linear": (("val_acc1",), float),
    "rankme": (("val_rankme", "train_rankme"), float),
    "alpha_req": (("val_alpha_req", "train_alpha_req"), lambda alpha: -abs(alpha - 1)),
    "uniformity": (("val_uniformity", "train_uniformity"), lambda value: -value),
}


class Best:
    """The highest score that an epoch of this run has had.

    Attributes:
        criterion: a key of CRITERIA; None: no epoch is better than another.
        score: None until it has been logged.
        kept: the score of the last such epoch that is known to be saved.
    """

    def __init__(self, criterion: str | None):
        self.criterion, self.score, self.kept = criterion, None, None

    def beaten(self, trainer) -> bool:
        """Whether this epoch is better than all before it; its score is remembered then."""
        if self.criterion is None:
            return False
        names, score = CRITERIA[self.criterion]
        found = [float(trainer.callback_metrics[n]) for n in names if n in trainer.callback_metrics]
        # one that an earlier epoch has logged is not above itself
        now = score(found[0]) if found else -math.inf
        better = now > (-math.inf if self.score is None else self.score)  # False for NaN, too
        if better := trainer.strategy.broadcast(better):
            self.score = now
        return better

    def settle(self, saved: bool) -> None:
        """After a save: an epoch that is not on the disk must not outdo the next ones."""
        self.score = self.kept = self.score if saved else self.kept

    def state(self) -> dict:
        """For the checkpoint; nothing where there is nothing to know."""
        return {} if self.score is None else {"criterion": self.criterion, "score": self.score}

    def load(self, state: dict) -> None:
        """Take over from the interrupted run, if it had the same criterion."""
        if state.get("criterion") == self.criterion:
            self.score = self.kept = state["score"]
