"""A run's checkpoint is written while the training goes on."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from ressl_plugin.run import checkpoint
from ressl_plugin.run.plain_values import to_plain
from ressl_plugin.utils.errors import CheckpointError, NotSaved

NICENESS = 10  # of the writer: where a step wants the same core, it has a tenth of it


class NotFinite(NotSaved):
    """The state that was to be saved holds NaN or infinity: an earlier one is worth more."""


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's files through `checkpoint.save` and `checkpoint.load`.

    A save returns once it has a copy of the state in host memory; a thread writes that. `wait`
    tells what came of it. There is one copy at a time.

    Args:
        loaded: the checkpoint that the training goes on from, which need not be read again.
    """

    def __init__(self, loaded: checkpoint.Loaded | None = None):
        self._loaded = loaded
        self._written: Future | None = None

    def save_checkpoint(self, checkpoint_, path, storage_options=None):
        self.teardown()
        for state in checkpoint_.get("lr_schedulers", ()):
            state.pop("get_lr", None)  # the host's static_lr: made anew at every start
        try:
            state = to_plain(checkpoint_)
        except CheckpointError as error:  # told by `wait`: the other ranks are on their way there
            self._written = Future()
            self._written.set_exception(error)
            return
        writer = ThreadPoolExecutor(1, "checkpoint")
        self._written = writer.submit(_write, path, state, **(storage_options or {}))
        writer.shutdown(wait=False)  # the thread ends with its save

    def wait(self) -> BaseException | None:
        """Why the last save failed, once it has ended; None if it did not, or has been told."""
        if self._written is None:
            return None
        error = self._written.exception()  # interrupted, one can wait again
        self._written = None
        return error

    def teardown(self):
        """Nothing is being written any more.

        Raises:
            what `wait` would have returned, had anybody asked.
        """
        if error := self.wait():
            raise error

    def load_checkpoint(self, path, map_location="cpu", weights_only=None):
        loaded, self._loaded = self._loaded, None
        if loaded is not None and Path(path) == loaded.path:
            state, loaded.state = loaded.state, None  # not kept while the training goes on
            return state
        # whatever the caller says: into host memory, and nothing is unpickled
        return checkpoint.load(path)

    def remove_checkpoint(self, path):
        Path(path).unlink(missing_ok=True)


def _write(path, state: dict, **more) -> None:
    if sys.platform == "linux":  # elsewhere a thread has none of its own
        own = threading.get_native_id()
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + NICENESS)
    if not all_finite(state):
        raise NotFinite("not saved: the state is not finite")
    checkpoint.save(path, state, **more)


def all_finite(state: dict) -> bool:
    """Whether a checkpoint's weights and its optimizers' tensors are finite, all of them."""
    tensors = list(state["state_dict"].values())
    for optimizer in state["optimizer_states"]:
        for of_weight in optimizer["state"].values():
            tensors += [t for t in of_weight.values() if isinstance(t, torch.Tensor)]
    # a sum takes an eighth of the time, and is not finite where one value is not; it may overflow
    return all(t.sum().isfinite() or t.isfinite().all() for t in tensors if t.is_floating_point())
