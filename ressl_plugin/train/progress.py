"""A training's progress, for Lightning's Trainer."""

from __future__ import annotations

import re
import time

from lightning.pytorch.callbacks import ProgressBar

from ressl_plugin.utils.progress import progress_bar, say, waited

SHOWN = re.compile(r"train_(?!.*class).*loss|val_acc1|val_knn_acc1")  # at the end of an epoch


class Progress(ProgressBar):
    """A training's bar, and a line with the means at the end of an epoch.

    Args:
        refresh: steps between two looks at the loss; each waits for the device.
    """

    def __init__(self, refresh: int = 50):
        super().__init__()
        self.refresh, self._enabled = refresh, True
        self._bar = self._validation = None
        self._start, self._validated, self._line_due = 0.0, False, False
        self._said = time.monotonic()  # when an epoch had its line

    def disable(self) -> None:  # by Lightning, for all ranks but the first
        self._enabled = False

    def _open(self, total, **how):
        total = None if total == float("inf") else int(total)
        return progress_bar(total=total, disable=not self._enabled, **how)

    def on_train_epoch_start(self, trainer, module) -> None:
        self._say_line(trainer)
        self._begin(trainer)

    def _begin(self, trainer) -> None:
        self._start, self._validated = time.monotonic(), False
        name = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        self._bar = self._open(self.total_train_batches, desc=name, unit="steps")

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if self._bar is None:  # an epoch that is resumed in its middle has no start
            self._begin(trainer)
        if not self._bar.n:
            self._bar.n = self._bar.initial = self._bar.last_print_n = batch_idx
        if batch_idx % self.refresh == 0 and self._enabled:
            self._bar.set_postfix(trainer.progress_bar_metrics, refresh=False)
        self._bar.update()

    def on_validation_start(self, trainer, module) -> None:
        total = self.total_val_batches
        self._validation = self._open(total, desc="validation", unit="batches")

    def on_validation_batch_end(self, *_, **__) -> None:
        self._validation.update()

    def on_validation_end(self, trainer, module) -> None:
        self._validation.close()
        self._validated = True

    def on_train_epoch_end(self, trainer, module) -> None:
        self._bar.close()
        self._line_due = True  # the module, which logs the epoch's means, is called after this

    def on_train_end(self, trainer, module) -> None:
        self._say_line(trainer, must=True)

    def _say_line(self, trainer, must: bool = False) -> None:
        if self._line_due and self._enabled:
            # a pause of its own: in a file, the bar's lines would leave none to long epochs
            must = must or waited(self._said)
            say(lambda: self.epoch_line(trainer), must=must)
            self._said = time.monotonic() if must else self._said
        self._line_due = False

    def epoch_line(self, trainer) -> str:
        """As `epoch 3/200: train_ressl_loss 5.12, val_knn_acc1 45.60, 12 s`."""
        found = [
            f"{name} {float(value):.2f}"
            for name, value in sorted(trainer.callback_metrics.items())
            if SHOWN.fullmatch(name)
            and (name.startswith("train") or (self._validated and value >= 0))  # -1: no labels
        ]
        took = f"{time.monotonic() - self._start:.0f} s"
        done = f"epoch {trainer.current_epoch}/{trainer.max_epochs}"
        return f"{done}: {', '.join([*found, took])}"

    def on_exception(self, trainer, module, exception) -> None:
        for one in (self._validation, self._bar):  # the message begins on a line of its own
            if one is not None:
                one.close()
