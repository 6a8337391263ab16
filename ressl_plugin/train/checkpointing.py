"""When a run saves, what it saves, and how it goes on as if it had never stopped.

A checkpoint is taken where nothing is half done: after a step, whose `optimizer_step` has moved the
teacher, too, or after an epoch's validation. With the weights go the optimizer, the
schedule, the loader's position, every rank's random number generators and the config, so that a
run killed anywhere and resumed computes what it would have computed, bit for bit on the CPU.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from ressl_plugin.config.diff import plain_config, without_places
from ressl_plugin.method.schedule import apply_settings, settings
from ressl_plugin.run import checkpoint
from ressl_plugin.run.checkpoint_schema import check_buffers, check_optimizers
from ressl_plugin.train.best import Best
from ressl_plugin.train.checkpoint_io import NotFinite
from ressl_plugin.utils import distributed
from ressl_plugin.utils.errors import CheckpointError, NotSaved, RunFault
from ressl_plugin.utils.rng import restore_rng, rng_state

log = logging.getLogger(__name__)

CONFIG, RNG = "ressl_config", "ressl_rng"
NONE = "no checkpoint was made"


class Preempted(SystemExit):
    """The cluster wants the machine back: all is saved, start the run again (exit status 75)."""

    def __init__(self):
        super().__init__(os.EX_TEMPFAIL)


class CheckpointCallback(Checkpoint):
    """Saves RUN/last.ckpt and RUN/best.ckpt, and restores what Lightning does not.

    Lightning calls a `Checkpoint` after all other callbacks, at the end of an epoch after the
    module itself, too.

    Args:
        run_dir: the run's directory.
        config: the resolved config (DictConfig or dict), stored as plain values.

    Attributes:
        stop: the exception that the run was told to end with: the step is finished, the state
            saved, and it is raised, on all ranks. A signal sets it; the same signal again stops at
            once.

    A save that is due at the end of an epoch waits for the epoch's validation. It is written while
    the training goes on, and waited for by the next one. One that fails (full disk) is logged and
    training goes on, if an earlier checkpoint of this process exists; the first and the last save
    must succeed, and are waited for.
    """

    def __init__(self, run_dir, config):
        self.path = Path(run_dir) / checkpoint.NAME
        self.config = plain_config(config)
        settings = self.config.get("checkpoint") or {}
        self.frequency = settings.get("frequency") or 1
        self.every_n_steps = settings.get("every_n_steps") or 0
        self.best = Best(settings.get("best"))
        self.stop = None
        self._signals = {
            signal.SIGINT: KeyboardInterrupt(),
            signal.SIGTERM: SIGTERMException(128 + signal.SIGTERM),
            signal.SIGHUP: SIGTERMException(128 + signal.SIGHUP),  # the terminal is closed
            signal.SIGUSR1: Preempted(),
        }
        self._handlers = {}
        self._signal = None  # the number of the signal that asks for it
        self._asked = distributed.AnyRank()  # whether one of them was told to stop
        self._saved = None  # global step of this process's last save
        self._writing = None  # and of the one that is under way
        self._due = False  # a save is due, and waits for a step that can be resumed from
        self._whole = None  # batches done when last a step, and all that is called after it, was
        self._states = None  # RNG of every rank, to be restored
        self._loaded = None  # states of optimizers and schedules, not yet taken over
        self._begun = False
        self._leaving = False  # told to stop, and saved, at the end of an epoch
        self._settings = None  # of the config, to be applied over those of the checkpoint

    def on_fit_start(self, trainer, pl_module):
        if self._loaded:  # now that there are optimizers, and before they take it over
            schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
            check_optimizers(trainer.ckpt_path, self._loaded, trainer.optimizers, schedules)
            self._loaded = None
        forced = self.config.get("resume_force") and trainer.ckpt_path
        self._settings = settings(trainer) if forced else None  # the checkpoint is loaded later

    def teardown(self, trainer, pl_module, stage):
        self._restore_handlers()

    def on_train_epoch_start(self, trainer, *_):
        if self._leaving:
            self._leave(trainer)

    def on_train_batch_end(self, trainer, *_):
        self._whole = _batches(trainer)
        stop = self._agreed_stop(trainer)
        step = trainer.global_step
        if self.every_n_steps and step and step % self.every_n_steps == 0:
            self._due |= step not in (self._saved, self._writing)
        if not can_resume_here(trainer):
            return  # a step later, or after the epoch
        if stop or self._due:
            self._save(trainer, must=stop)
        if stop:
            self._leave(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        stop = self._agreed_stop(trainer)
        epoch = trainer.current_epoch + 1
        last = epoch == trainer.max_epochs
        if self.best.criterion:  # what it has to beat is on the disk
            self._settle(trainer)
        best = self.best.beaten(trainer)
        if stop or last or best or self._due or epoch % self.frequency == 0:
            self._save(trainer, must=stop or last, best=best)
        self._leaving = stop  # not yet: Lightning logs the epoch's means after this

    def on_train_end(self, trainer, pl_module):
        if self.best.criterion and self.best.score is None:
            log.warning("checkpoint.best=%s: never logged, so there is none", self.best.criterion)
        self._settle(trainer)
        if self._saved != trainer.global_step:
            self._save(trainer, must=True)
        self._restore_handlers()  # Lightning's, before it puts back those before its own
        if self._leaving:
            self._leave(trainer)

    def on_exception(self, trainer, pl_module, exception):
        """Save if the failure fell between two steps, else say which checkpoint is the last."""
        self._restore_handlers()
        calm = self._whole == _batches(trainer) and trainer.training and trainer.world_size == 1
        try:
            self._settle(trainer, agreed=False)  # other ranks may be anywhere
            if calm and self._saved != trainer.global_step and can_resume_here(trainer):
                self._save(trainer, must=True)
        except (CheckpointError, RunFault) as error:  # the exception itself is the news
            log.error("%s", error)
        if trainer.is_global_zero:
            log.warning(last_good(self.path.parent))

    # Saving

    def _save(self, trainer, must, best=False):
        """Have the state written; wait for that where it must succeed."""
        self._settle(trainer)
        self._due = False
        more = {"best": True} if best else None
        trainer.save_checkpoint(self.path, weights_only=False, storage_options=more)
        self._writing = trainer.global_step
        if must or self._saved is None:
            self._settle(trainer, must)

    def _settle(self, trainer, must=False, agreed=True):
        """Wait for the save under way; `agreed`: all ranks do, and hear from rank 0 what it is."""
        if self._writing is None:
            return
        failure = trainer.strategy.checkpoint_io.wait()
        if agreed:
            # Weights are alike on all ranks, batch-norm statistics are not: rank 0 decides.
            failure = trainer.strategy.broadcast(failure)
        step, self._writing = self._writing, None
        self.best.settle(failure is None)
        if failure is None:
            self._saved = step
        elif isinstance(failure, NotFinite):
            why = f"{failure}; {last_good(self.path.parent)}"
            if must and self.stop is None:
                raise RunFault(f"{why}. Try a lower optimizer.lr or precision=32-true")
            log.error(why)
        elif not isinstance(failure, (CheckpointError, NotSaved, OSError)):
            raise failure
        elif must or self._saved is None:
            raise NotSaved(str(failure))
        else:
            log.error("%s; training goes on", failure)

    def state_dict(self):
        return self.best.state()

    def load_state_dict(self, state):
        if self.path.with_name(checkpoint.BEST).is_file():  # else it is another directory's
            self.best.load(state)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint[CONFIG] = without_places(self.config)
        checkpoint[RNG] = distributed.gather_objects(rng_state())

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self._states = checkpoint.get(RNG)
        self._loaded = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
        if self._states and len(self._states) != trainer.world_size:
            log.warning(
                "the checkpoint was written by %d processes, now there are %d: images and views go "
                "on, what networks draw themselves (dropout) starts afresh",
                len(self._states),
                trainer.world_size,
            )
            self._states = None

    def on_train_start(self, trainer, pl_module):
        self._install_handlers()
        lay_out(trainer.optimizers)
        if self._settings is not None:
            apply_settings(trainer, *self._settings)
        states, self._states = self._states, None
        if states is not None:
            restore_rng(states[trainer.global_rank])
        # Lightning has begun this epoch's iteration: before the generators were restored, and
        # before the loader's position was known if something asked how many steps there will be
        # (`estimated_stepping_batches`).
        loop = trainer.fit_loop
        late = bool(loop._combined_loader_states_to_load) and loop.restarting
        loop._load_combined_loader_states()
        if late or (states is not None and loop.resumed_on_epoch_end):
            iter(loop._data_fetcher)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self._begun:
            return
        if trainer.ckpt_path:  # gradients tell which weights are trained
            check_buffers(trainer.ckpt_path, trainer.optimizers)
        # there are none where a batch was left out
        self._begun = any(p.grad is not None for p in pl_module.parameters())

    # Signals

    def _install_handlers(self):
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._signals:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._handlers[number] = signal.signal(number, self._on_signal)

    def _restore_handlers(self):
        for number in list(self._handlers):
            before = self._handlers.pop(number) or signal.SIG_DFL
            # else somebody has taken it over: what was before us is gone by now
            if signal.getsignal(number) in (self._on_signal, self._at_once):
                signal.signal(number, before)

    def _on_signal(self, number, _):
        log.warning(
            "%s: finishing this step, then saving; again: stop at once", signal.Signals(number).name
        )
        self.stop, self._signal = self._signals[number], number
        # not the handler that was there: Lightning's has the run end some time, with status 0
        signal.signal(number, self._at_once)

    def _at_once(self, number, _):
        raise self._signals[number]

    def _agreed_stop(self, trainer) -> bool:
        if self.stop is None and trainer.received_sigterm:
            self.stop = SIGTERMException(128 + signal.SIGTERM)
        device, now = trainer.strategy.root_device, trainer.is_last_batch
        return self._asked.says(self.stop is not None, device, now)

    def _leave(self, trainer):
        # one exit status for all: that of the first rank that knows
        known = distributed.gather_objects(self._signal)
        first = next((number for number in known if number is not None), None)
        self.stop = self._signals.get(first, self.stop)
        raise self.stop or SIGTERMException(128 + signal.SIGTERM)


def last_good(folder: Path) -> str:
    """Half a sentence about the checkpoint from which a run can go on."""
    for file in (folder / checkpoint.NAME, checkpoint.previous(folder / checkpoint.NAME)):
        if file.is_file():
            return f"the last good checkpoint is {file}"
    return NONE


def can_resume_here(trainer) -> bool:
    """Whether Lightning goes on exactly from after this step: not while gradients are being
    accumulated, and not before a validation, which it would skip with all that it draws."""
    loop = trainer.fit_loop
    validates = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
    return not (trainer.is_last_batch or validates or loop._should_accumulate())


def _batches(trainer) -> int:
    """Those that have begun, over all epochs."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def lay_out(optimizers: list) -> None:
    """What was loaded lies in memory as its weights do, which a fused step takes for granted."""
    for optimizer in optimizers:
        for weight, state in optimizer.state.items():
            for name, value in state.items():
                alike = isinstance(value, torch.Tensor) and value.shape == weight.shape
                if alike and value.stride() != weight.stride():
                    state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
