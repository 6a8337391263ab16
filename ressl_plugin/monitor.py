"""Watch a run: collapse of the target relation, metrics that survive a resume."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ressl_plugin.saving import followed_by

log = logging.getLogger(__name__)

UNIFORM = 0.98  # of log K: above it the target relation says nothing


class CollapseMonitor(pl.Callback):
    """Warn once when the target relation stays uniform over a whole epoch after warm-up.

    Its entropy over log K and the spread of the teacher's embeddings are logged every epoch as
    target_entropy and embedding_spread. A target that stays at log K carries no relation: the
    loss is flat at log K and nothing is learned.
    """

    def __init__(self, warmup_epochs: float):
        self.warmup_epochs = warmup_epochs
        self.collapsed_at: int | None = None

    def setup(self, trainer, module, stage) -> None:
        """Look after the module's own hook: Lightning calls a callback's before it, and the module
        logs the epoch's means there."""
        if stage == "fit":
            hook = followed_by(module.on_train_epoch_end, self._look, trainer)
            module.on_train_epoch_end = hook

    def teardown(self, trainer, module, stage) -> None:
        """The module is as it was."""
        module.__dict__.pop("on_train_epoch_end", None)

    def _look(self, trainer) -> None:
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


class MetricsFile(CSVLogger):
    """RUN/metrics.csv. Lightning's own CSVLogger empties the file of the run that it resumes."""

    def __init__(self, folder: Path):
        self.file = Path(folder) / "metrics.csv"
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self):
        """Lightning's writer, opened without losing what the file holds."""
        if self._experiment is None:
            before = self.file.read_bytes() if self.file.is_file() else None
            writer = super().experiment
            if before:
                self.file.write_bytes(before)
                writer.metrics_keys = before.decode().splitlines()[0].split(",")
        return self._experiment

    @rank_zero_only
    def keep(self, steps: int) -> None:
        """Drop the rows beyond the first `steps` steps: they will be written again."""
        rows = _rows(self.file)
        kept = [r for r in rows if int(r["step"]) < steps]
        self.file.unlink(missing_ok=True)
        self.experiment.metrics_keys = list(rows[0]) if kept else []
        if kept:
            with self.file.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(kept)


class KeepMetrics(pl.Callback):
    """Keep the metrics file in step with the checkpoints."""

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        """What a checkpoint has behind it is on disk."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.save()

    def on_train_start(self, trainer, module) -> None:
        """Rows beyond the checkpoint will be written again."""
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep(trainer.global_step)


def _rows(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [r for r in csv.DictReader(file) if (r.get("step") or "").isdigit()]
