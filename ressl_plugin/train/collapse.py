"""A target relation that says nothing, seen in the epoch in which it happens."""

from __future__ import annotations

import logging

from lightning.pytorch.callbacks import Checkpoint

log = logging.getLogger(__name__)

UNIFORM = 0.98  # of log K: above it the target relation says nothing


class CollapseMonitor(Checkpoint):
    """Warn once when the target relation stays uniform over a whole epoch after warm-up.

    Its entropy over log K and the spread of the teacher's embeddings are logged every epoch as
    target_entropy and embedding_spread. A target that stays at log K carries no relation: the
    loss is flat at log K and nothing is learned.
    """

    def __init__(self, warmup_epochs: float):
        self.warmup_epochs = warmup_epochs
        self.collapsed_at: int | None = None

    def on_train_epoch_end(self, trainer, module) -> None:
        """Lightning calls a `Checkpoint` after the module, which logs the epoch's means here."""
        entropy = trainer.callback_metrics.get("target_entropy")
        late = trainer.current_epoch + 1 > self.warmup_epochs
        if entropy is None or not late or entropy <= UNIFORM or self.collapsed_at is not None:
            return
        self.collapsed_at = trainer.current_epoch
        log.warning(
            "collapse: in epoch %d the target relation's entropy was %.3f of log K, so it is "
            "uniform and teaches nothing. Try method_kwargs.proj_batchnorm=true, a lower "
            "method_kwargs.temperature_k, a longer scheduler.warmup_epochs, a smaller queue, or "
            "method_kwargs.infonce_epochs",
            trainer.current_epoch,
            float(entropy),
        )

    def state_dict(self) -> dict:
        """What a resumed run must know: that it has warned."""
        return {"collapsed_at": self.collapsed_at}

    def load_state_dict(self, state: dict) -> None:
        """Take over from the interrupted run."""
        self.collapsed_at = state["collapsed_at"]
