"""A step that does not end ends the run, which can then be started again."""

from __future__ import annotations

import faulthandler
import math
import os
import sys
import threading
import time
from pathlib import Path

import lightning.pytorch as pl

from ressl_plugin.train.faults import goes_on, is_a_lost_rank

PAUSE = 5.0  # seconds between two looks at the clock
TO_LEAVE = 30.0  # seconds that a process has to end in once another rank is gone


def leave(status: int) -> None:
    """End the process with `status` if it has not ended in time by itself."""
    timer = threading.Timer(TO_LEAVE, os._exit, [status])
    timer.daemon = True
    timer.start()


class Watchdog(pl.Callback):
    """End the process with 75 when nothing has happened for `minutes`.

    The clock starts anew with every batch, of training and of validation. What each thread was
    doing is then on standard error. A thread looks at it: one that holds Python's lock for so long,
    which no library waits with, is not noticed. Time in which the whole process is stopped (Ctrl-Z,
    SLURM's suspend) does not count.
    """

    def __init__(self, folder: Path, minutes: float):
        self.folder, self.minutes = folder, minutes
        self._deadline = math.inf
        self._ended = threading.Event()

    def setup(self, trainer, module, stage) -> None:
        self._ended.clear()
        self._alive()  # what comes before the first step counts as one
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def teardown(self, trainer, module, stage) -> None:
        self._ended.set()

    def on_exception(self, trainer, module, exception) -> None:
        """The run is over; nothing waits for a rank that is gone, not even what tidies up."""
        if trainer.world_size > 1 and is_a_lost_rank(exception):
            self._deadline = time.monotonic() + TO_LEAVE
        else:
            self._ended.set()

    def _alive(self, *_) -> None:
        self._deadline = time.monotonic() + 60 * self.minutes if self.minutes else math.inf

    on_train_batch_start = on_train_batch_end = _alive
    on_validation_batch_start = on_validation_batch_end = _alive

    def _watch(self) -> None:
        while (left := self._deadline - time.monotonic()) > 0:
            pause, before = min(left, PAUSE), time.monotonic()
            if self._ended.wait(pause):
                return
            late = time.monotonic() - before - pause
            if late > PAUSE:  # stopped, as the run was
                self._deadline += late
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        print(
            f"ressl: a step has taken longer than faults.timeout={self.minutes:g} minutes, or the "
            f"run did not end; above is what each thread was doing; {goes_on(self.folder)}",
            file=sys.__stderr__,
            flush=True,
        )
        os._exit(os.EX_TEMPFAIL)
