"""What can go wrong in a long run, said in one line each."""

from __future__ import annotations

import contextlib
import errno
import signal
import traceback
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ressl_plugin.run import checkpoint, results
from ressl_plugin.train.checkpointing import NONE, Preempted, last_good
from ressl_plugin.utils import distributed
from ressl_plugin.utils.errors import (
    OF_THE_MACHINE,
    CheckpointError,
    RankLost,
    RunFault,
    UserError,
    own_words,
)

HOPELESS = 100  # steps left out in a row
SKIPPED = "ressl_skipped_steps"
_FROM_GLOO = "gloo/transport"  # in its messages, of which torch makes plain RuntimeErrors
_OF_THE_CPUS_MEMORY = "DefaultCPUAllocator"  # likewise
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class Faults(pl.Callback):
    """Stop at a non-finite loss; report skipped steps and collapse in results.json.

    On a GPU the loss is looked at one step later, so that no step waits for the device; nothing
    is saved in between. `skip` (see ReSSL.training_step) has to wait, and leaves the step out.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.connected = False  # whether the ranks have met
        self.stepping = False  # whether this process has taken a step
        self._pending: tuple[int, torch.Tensor, torch.cuda.Event | None] | None = None

    def setup(self, trainer, module, stage) -> None:
        self.connected = True  # Lightning has had all ranks wait for each other just before

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Look at the step's loss (CPU) or at the one before (GPU)."""
        self.stepping = True
        if getattr(module, "skipped_in_a_row", 0) >= HOPELESS:
            raise RunFault(
                f"the loss was not finite in {HOPELESS} steps on end, all left out; "
                f"{last_good(self.folder)}. Try a lower optimizer.lr or precision=32-true"
            )
        loss = outputs["loss"]
        finite = distributed.all_true(loss.detach().isfinite())  # all ranks stop together
        done = None
        if loss.is_cuda:
            # A copy and an event of this step: asking the tensor itself would wait for the next
            # step, too, which is in the same stream by then.
            finite, done = finite.to("cpu", non_blocking=True), torch.cuda.Event()
            done.record()
        self._look_back()
        self._pending = trainer.global_step, finite, done
        if not loss.is_cuda:
            self._look_back()

    def on_train_epoch_end(self, trainer, module) -> None:
        self._look_back()  # nothing is saved before

    def _look_back(self) -> None:
        if self._pending is None:
            return
        (step, finite, done), self._pending = self._pending, None
        if done is not None:
            done.synchronize()
        if not finite:
            raise RunFault(
                f"the loss is not finite at step {step}; {last_good(self.folder)}. Try a lower "
                "optimizer.lr, precision=32-true, or faults.non_finite=skip"
            )

    def on_save_checkpoint(self, trainer, module, checkpoint) -> None:
        checkpoint[SKIPPED] = int(getattr(module, "skipped_steps", 0))

    def on_load_checkpoint(self, trainer, module, checkpoint) -> None:
        module.skipped_steps = checkpoint.get(SKIPPED, 0)

    def on_train_end(self, trainer, module) -> None:
        if not trainer.is_global_zero:
            return
        skipped = int(getattr(module, "skipped_steps", 0))
        collapsed = next(c.collapsed_at for c in trainer.callbacks if hasattr(c, "collapsed_at"))
        for metric, value in (("skipped_steps", skipped or None), ("collapsed_at", collapsed)):
            if value is not None:
                record = {"evaluator": "pretrain", "protocol": "watch", "metric": metric}
                data = module.cfg.data.dataset
                results.append(self.folder, {**record, "data": data, "value": value})


def goes_on(folder: Path, once: str = "") -> str:
    """The end of a message: from where the run can be continued, if from anywhere."""
    good = last_good(folder)
    return good if good == NONE else f"{good}, resume=true continues from it{once}"


@contextlib.contextmanager
def told_to_stop(trainer: pl.Trainer):
    """A signal that ends `trainer`'s work, as what it is: KeyboardInterrupt, of which Lightning
    makes an exit with status 1; SIGTERMException with an exit status, which Lightning's has not.
    """
    try:
        yield
    except SIGTERMException as error:
        raise SIGTERMException(error.code or 128 + signal.SIGTERM) from None
    except Preempted:
        raise
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise


@contextlib.contextmanager
def reported(trainer: pl.Trainer, folder: Path):
    """What ends a training, as what it is: see `told_to_stop`; RankLost if another rank was killed;
    RunFault if a data worker was, memory or disk are full, or an image cannot be read any more.
    """
    try:
        with told_to_stop(trainer):
            yield
    except (CheckpointError, RunFault):
        raise
    except UserError as error:
        text = own_words(error)
        # a resumed run has steps behind it (global_step) before it has taken one
        if not any(c.stepping for c in _faults(trainer)):
            raise UserError(text) from error
        raise RunFault(f"{text}; {goes_on(folder, ' once the images are as they were')}") from error
    except OF_THE_MACHINE as error:
        # what ended the run ended a worker first
        stop = next((c.stop for c in trainer.callbacks if hasattr(c, "stop")), None)
        if stop is not None and is_a_workers_death(error):
            raise stop from error
        connected = any(c.connected for c in _faults(trainer)) and trainer.world_size > 1
        if connected and is_a_lost_rank(error):
            why = str(error).partition("\n")[0]
            raise RankLost(
                f"rank {trainer.global_rank}: another rank is gone ({why}); {goes_on(folder)}"
            ) from error
        if (known := explain(error)) is None:
            raise
        raise RunFault(f"{known}; {goes_on(folder)}") from error


def _faults(trainer: pl.Trainer) -> list[Faults]:
    return [c for c in trainer.callbacks if isinstance(c, Faults)]


def explain(error: Exception) -> str | None:
    """One line for a fault that a user can do something about; None for a bug."""
    if is_a_workers_death(error):
        return "a data loading worker was killed (often for memory): lower data.num_workers"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of GPU memory: lower optimizer.batch_size"
    if isinstance(error, MemoryError) or _OF_THE_CPUS_MEMORY in str(error):
        return "out of memory: fewer or smaller images, or a smaller optimizer.batch_size"
    if isinstance(error, OSError) and error.errno in checkpoint.FULL:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}; make room"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, dist.DistNetworkError):
        why = str(error).partition("\n")[0]
        return f"the run's processes cannot reach each other: {why}"
    return None


def is_a_workers_death(error: BaseException | None) -> bool:
    """Whether a lost data worker is what an exception comes from.

    PyTorch says so itself in three ways. In a fourth the connection to a worker breaks before the
    worker counts as dead: then whatever the connection raised is all there is.
    """
    while error is not None:
        text = str(error)
        if isinstance(error, RuntimeError) and (
            ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed" in text))
            or "Pin memory thread exited unexpectedly" in text
        ):
            return True
        if isinstance(error, OF_THE_MACHINE) and _from_a_worker(error):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def is_a_lost_rank(error: BaseException) -> bool:
    """Whether a collective operation, of ranks that had met, has found that another is gone."""
    from_gloo = isinstance(error, RuntimeError) and _FROM_GLOO in str(error)
    return from_gloo or isinstance(error, (dist.DistBackendError, dist.DistNetworkError))


def _from_a_worker(error: Exception) -> bool:
    """Whether it was raised while a batch was being received: not by what a worker itself raised,
    nor where this process has no more files."""
    if getattr(error, "errno", None) in _TOO_MANY_FILES or "Too many open files" in str(error):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(
        frame.f_code.co_name == "_try_get_data"
        and frame.f_globals.get("__name__") == "torch.utils.data.dataloader"
        for frame, _ in frames
    )
