"""A target relation that says nothing, seen before the run is over."""

from __future__ import annotations

import logging

from lightning.pytorch.callbacks import Checkpoint

log = logging.getLogger(__name__)

UNIFORM = 0.98  # of log K: above it the target relation says nothing
PATIENCE = 5  # epochs: a young network often comes near log K for two or three, and leaves it again


class CollapseMonitor(Checkpoint):
    """Warn once when the target relation stays uniform after warm-up.

    That is, for `PATIENCE` whole epochs one after the other, or up to the run's end. The target's
    entropy over log K and the spread of the teacher's embeddings are logged every epoch as
    target_entropy and embedding_spread. A target that stays at log K carries no relation: the
    loss is flat at log K and nothing is learned.
    """

    def __init__(self, warmup_epochs: float):
        self.warmup_epochs = warmup_epochs
        self.uniform_epochs = 0  # in a row, up to now
        self.collapsed_at: int | None = None

    def on_train_epoch_end(self, trainer, module) -> None:
        """Lightning calls a `Checkpoint` after the module, which logs the epoch's means here."""
        entropy = trainer.callback_metrics.get("target_entropy")
        late = trainer.current_epoch + 1 > self.warmup_epochs
        uniform = entropy is not None and late and entropy > UNIFORM
        self.uniform_epochs = self.uniform_epochs + 1 if uniform else 0
        over = trainer.current_epoch + 1 == trainer.max_epochs
        if self.collapsed_at is not None or self.uniform_epochs < (1 if over else PATIENCE):
            return
        self.collapsed_at = trainer.current_epoch
        log.warning(
            "collapse: since epoch %d the target relation's entropy has been %s of log K and more "
            "(%.3f in epoch %d): it is uniform and teaches nothing. Try "
            "method_kwargs.proj_batchnorm=true, a lower method_kwargs.temperature_k, a longer "
            "scheduler.warmup_epochs, a smaller queue, or method_kwargs.infonce_epochs",
            trainer.current_epoch + 2 - self.uniform_epochs,
            UNIFORM,
            float(entropy),
            trainer.current_epoch + 1,  # as the progress line counts
        )

    def state_dict(self) -> dict:
        return {"collapsed_at": self.collapsed_at, "uniform_epochs": self.uniform_epochs}

    def load_state_dict(self, state: dict) -> None:
        self.collapsed_at = state["collapsed_at"]
        self.uniform_epochs = state.get("uniform_epochs", 0)  # 0.1.0 has none
