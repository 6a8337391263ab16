"""What a command says while it works: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
import warnings

from tqdm import tqdm

PAUSE = 30.0  # seconds between two lines
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} gone, {remaining} to go, {rate_fmt}{postfix}"
LIGHTNING = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")
NOISE = (
    "Experiment logs directory", "The number of training batches", ".*treespec",
    "The '.*_dataloader' does not have many workers", "Total length of .* across ranks is zero",
)  # fmt: skip


class Lines(tqdm):
    """In place of a bar where standard error is a file; the pause is between lines of any bar."""

    said: float | None = None  # when the last one was written

    def __init__(self, *args, **how):
        if Lines.said is None:
            Lines.said = time.monotonic()
        # what tqdm itself writes is for a terminal
        super().__init__(*args, **{**how, "file": io.StringIO(), "bar_format": LINE})

    def display(self, msg=None, pos=None) -> None:
        """Called for every change that a bar would show."""
        if msg is None and self.n:
            say(lambda: str(self))


def say(text, must: bool = False) -> None:
    """`text()` on a line of its own: at once on a terminal or if it must, else if it is time."""
    if sys.stderr.isatty():
        tqdm.write(text(), file=sys.stderr)
    elif must or waited(Lines.said or 0.0):
        Lines.said = time.monotonic()
        print(text(), file=sys.stderr, flush=True)


def waited(since: float) -> bool:
    """Whether the pause between two lines is over."""
    return time.monotonic() - since >= PAUSE


def progress_bar(iterable=None, **how) -> tqdm:
    """tqdm's bar on standard error, which leaves nothing behind; see Lines.

    >>> for batch in progress_bar(loader, desc="features", unit="batch"):
    ...     pass
    """
    kind = tqdm if sys.stderr.isatty() else Lines
    return kind(iterable, **{"leave": False, **how})


@contextlib.contextmanager
def quiet():
    """Lightning says what it is, in a logger whose lines the root logger repeats; whatever of it
    is needed is said here."""
    loggers = [logging.getLogger(name) for name in LIGHTNING]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for noise in NOISE:
            warnings.filterwarnings("ignore", noise)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before):
                logger.setLevel(level)
