"""Watch a run: collapse of the target relation, metrics that survive a resume."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from ressl_plugin.run.metrics import Rows
from ressl_plugin.train.checkpointing import followed_by

log = logging.getLogger(__name__)

UNIFORM = 0.98  # of log K: above it the target relation says nothing
PAUSE = 60.0  # seconds between two tries of a disk on which TensorBoard could not write
ROOM = 1 << 20  # bytes that it must take then


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


class _Writer(ExperimentWriter):
    """Lightning's writer over `Rows`. Its own __init__, not called, deletes the file of the run
    that is resumed."""

    def __init__(self, folder: Path):
        self.log_dir, self.hparams = str(folder), {}
        self.rows = Rows(folder / self.NAME_METRICS_FILE)

    @property
    def metrics(self) -> list[dict]:
        """Where Lightning adds a row."""
        return self.rows.waiting

    def save(self) -> None:
        """To disk, if it has room; see Rows."""
        self.rows.save()


class MetricsFile(CSVLogger):
    """RUN/metrics.csv, which outlives an interruption and a full disk."""

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self):
        """The writer, which touches nothing until there is something to write."""
        if self._experiment is None:
            folder = Path(self.log_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(folder)
        return self._experiment

    @rank_zero_only
    def keep(self, steps: int) -> None:
        """Drop the rows beyond the first `steps` steps: they will be written again."""
        self.experiment.rows.keep(steps)


class Events(TensorBoardLogger):
    """TensorBoard's events in RUN; a disk that is full costs events, not the training.

    A failure is logged once. TensorBoard's writer is dead after one: a new one, with a file of its
    own, takes over when there is room again, and what was logged in between is in metrics.csv only.
    """

    def __init__(self, folder: Path):
        super().__init__(folder, name="", version="")
        self._failed, self._again = False, 0.0

    @rank_zero_only
    def log_metrics(self, metrics, step=None) -> None:
        """As TensorBoardLogger's."""
        self._try(super().log_metrics, metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params, metrics=None, step=None) -> None:
        """As TensorBoardLogger's."""
        self._try(super().log_hyperparams, params, metrics, step)

    @rank_zero_only
    def save(self) -> None:
        """As TensorBoardLogger's."""
        self._try(super().save)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """As TensorBoardLogger's."""
        self._try(super().finalize, status)

    def _try(self, call, *args) -> None:
        if self._failed and not self._room():
            return
        try:
            call(*args)
        except (OSError, ValueError) as error:  # log_metrics makes a ValueError of everything
            cause = error if isinstance(error, OSError) else error.__cause__
            if type(cause) is RuntimeError:  # a data worker's death, out of a signal's handler
                raise cause from None
            if not isinstance(cause, OSError):
                raise
            log.error(
                "%s: TensorBoard's events are not written (%s), training goes on",
                self.log_dir,
                cause.strerror or cause,
            )
            self._failed, self._experiment = True, None
            self._again = time.monotonic() + PAUSE

    def _room(self) -> bool:
        """Whether the disk takes a file again. TensorBoard's writer is not what finds out: its
        thread prints a traceback."""
        if time.monotonic() < self._again:
            return False
        self._again = time.monotonic() + PAUSE
        try:
            with tempfile.TemporaryFile(dir=self.log_dir) as file:
                file.write(bytes(ROOM))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        self._failed = False
        log.warning("%s: TensorBoard's events are written again, in another file", self.log_dir)
        return True


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
