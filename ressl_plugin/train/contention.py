"""A training on the CPU that waits for cores says so, once it has begun."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import lightning.pytorch as pl
import torch

log = logging.getLogger(__name__)

# Linux: nanoseconds on a core, and ready to run without one, of the process's first thread
SCHEDSTAT = Path("/proc/self/schedstat")
SHARE = 0.25  # of the time: where nobody else is, a hundredth
SECONDS = 20.0  # looked at, once the first step is done


class Contention(pl.Callback):
    """Warn once where a training on the CPU waits for cores that something else has.

    OpenMP's threads spin until the last of them is done: one that has no core keeps the others
    busy with nothing, and a training falls to a quarter of its speed (benchmarks/results/busy.txt).
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds = seconds
        self._began: tuple[float, float] | None = None
        self._done = not SCHEDSTAT.exists()

    def on_train_batch_end(self, trainer, module, *_) -> None:
        if self._done or module.device.type != "cpu" or torch.get_num_threads() == 1:
            return
        now, waited = time.monotonic(), seconds_without_a_core()
        if self._began is None:
            self._began = now, waited
        elif now - self._began[0] >= self.seconds:
            self._done = True
            share = (waited - self._began[1]) / (now - self._began[0])
            if share > SHARE:
                self._say(share)

    def _say(self, share: float) -> None:
        threads = torch.get_num_threads()
        log.warning(
            "the processor is busy: %.0f %% of the time this training waits for a core, and its %d "
            "threads wait for each other. Beside other programs OMP_NUM_THREADS=%d may be several "
            "times as fast",
            100 * share, threads, threads - 1,
        )  # fmt: skip


def seconds_without_a_core() -> float:
    """How long this process's first thread has been ready to run and not been let."""
    return int(SCHEDSTAT.read_text().split()[1]) / 1e9
