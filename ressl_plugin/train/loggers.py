"""Where a training logs to: RUN/logs/<start>, as CSV and for TensorBoard; wandb if configured."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from omegaconf import DictConfig

from ressl_plugin.run import metrics
from ressl_plugin.utils import packages
from ressl_plugin.utils.launch import launched_first

log = logging.getLogger(__name__)

PAUSE = 600.0  # seconds until a disk that took no line is tried again


class _OfAStart:
    """Lightning's logger in RUN/logs/<start>, where a full disk costs lines, not the training."""

    def __init__(self, run: Path):
        super().__init__(run / metrics.LOGS, name="", version=metrics.next_start(run))
        self.run, self._closed_until = run, 0.0

    def log_metrics(self, metrics, step=None) -> None:
        self._try(super().log_metrics, metrics, step)

    def log_hyperparams(self, params, *more) -> None:
        self._try(super().log_hyperparams, params, *more)

    def save(self) -> None:
        self._try(super().save)

    def finalize(self, status: str) -> None:
        self._try(super().finalize, status)

    def _try(self, call, *args) -> None:
        if time.monotonic() < self._closed_until:
            return
        try:
            call(*args)
        except (OSError, ValueError) as error:
            # TensorBoardLogger makes a ValueError of everything
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            if not self._closed_until:
                log.error("%s: the log is not written (%s), training goes on", self.log_dir, cause)
            # its files may end in half a line, TensorBoard's writer is dead: go on in others
            self._experiment, self._version = None, metrics.next_start(self.run)
            self._closed_until = time.monotonic() + PAUSE


class CSV(_OfAStart, CSVLogger):
    """RUN/logs/<start>/metrics.csv."""


class TensorBoard(_OfAStart, TensorBoardLogger):
    """Events in RUN/logs/<start>."""


def loggers(cfg: DictConfig, folder: Path) -> list:
    """Those of one start of the run in `folder`, on the first rank; nothing is written yet."""
    if not launched_first():
        return []
    made = [CSV(folder), TensorBoard(folder)]
    if cfg.wandb.enabled:
        packages.need("wandb", "wandb", "wandb.enabled=true (false does without)")
        from lightning.pytorch.loggers import WandbLogger

        to = {key: cfg.wandb[key] for key in ("project", "entity", "offline")}
        made.append(WandbLogger(name=cfg.name, save_dir=str(folder), **to))
    return made
