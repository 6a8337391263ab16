"""A start's logs are its own; a full disk costs lines of them and not the training."""

import errno
import io
import logging
import os
import shutil
import threading
import types

import fsspec.implementations.local as local
import lightning.pytorch as pl
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.tensorflow_stub.io import gfile

from ressl_plugin.run import metrics
from ressl_plugin.train import loggers as module
from ressl_plugin.train.faults import is_a_workers_death
from ressl_plugin.train.loggers import TensorBoard, loggers

CFG = OmegaConf.create({"wandb": {"enabled": False}})


class Disk:
    """One that can be full: what is to be written to a file, opened by whom it may be, raises."""

    def __init__(self, monkeypatch):
        self.full = False
        theirs = types.SimpleNamespace(**{**vars(io), "open": self.open})
        monkeypatch.setattr(gfile, "io", theirs)  # TensorBoard's
        monkeypatch.setattr(local, "open", self.open, raising=False)  # of Lightning's CSVLogger

    def open(self, *args, **kwargs):
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(*args, **kwargs)


def log(made, *steps):
    for logger in made:
        for step in steps:
            logger.log_metrics({"loss": step / 10}, step)
        logger.save()


def steps(folder):
    return [int(row["step"]) for row in metrics.joined(metrics.logged(folder))]


def events(folder):
    found = [file for start in metrics.starts(folder) for file in sorted(start.glob("events*"))]
    read = [event_file_loader.EventFileLoader(str(file)).Load() for file in found]
    return {e.step for file in read for e in file if e.summary.value}


def test_nothing_is_written_before_there_is_something(tmp_path):
    loggers(CFG, tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_start_has_a_directory(tmp_path, recwarn):
    for start in (0, 1):
        made = loggers(CFG, tmp_path)
        log(made, 2 * start, 2 * start + 1)
        for logger in made:
            logger.finalize("success")
        assert (tmp_path / "logs" / str(start) / "metrics.csv").is_file()
    assert steps(tmp_path) == [0, 1, 2, 3] and events(tmp_path) == {0, 1, 2, 3}
    assert not [w for w in recwarn if "will be deleted" in str(w.message)]


@pytest.mark.parametrize("pause", [0.0, 600.0])
def test_a_full_disk_ends_no_logging(tmp_path, monkeypatch, caplog, pause):
    monkeypatch.setattr(module, "PAUSE", pause)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)  # TensorBoard's thread dies
    disk, made = Disk(monkeypatch), loggers(CFG, tmp_path)
    log(made, 0, 1)
    disk.full = True
    log(made, 2, 3)
    log(made, 4)
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2 and all("No space left on device), training" in e for e in errors)
    disk.full = False
    log(made, 5)
    for logger in made:
        logger.finalize("success")
    after = [5] if pause == 0 else []
    assert steps(tmp_path) == [0, 1, *after]
    assert {0, 1, *after} <= events(tmp_path) <= set(range(6))


def test_other_errors_of_tensorboard_are_not_hidden(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        TensorBoard(tmp_path).log_metrics({"loss": "a word"}, 0)


def test_the_death_of_a_worker_is_known_as_one(tmp_path, monkeypatch):
    """Raised by a signal's handler wherever the process is, here in TensorBoard's writer."""

    def dies(*_, **__):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    logger = TensorBoard(tmp_path)
    monkeypatch.setattr(type(logger.experiment), "add_scalar", dies)
    with pytest.raises(ValueError) as found:
        logger.log_metrics({"loss": 1.0}, 0)
    assert is_a_workers_death(found.value)


class Gone(pl.Callback):
    def on_train_start(self, trainer, module):
        shutil.rmtree(trainer.log_dir)


def test_a_training_goes_on_without_a_place_for_its_logs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)  # TensorBoard's thread dies
    trainer = pl.Trainer(
        logger=loggers(CFG, tmp_path), callbacks=[Gone()], max_steps=3, log_every_n_steps=1,
        accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    model = BoringModel()
    model.training_step = lambda *args: (
        model.log("loss", 1.0) or BoringModel.training_step(model, *args)
    )
    trainer.fit(model)
    assert trainer.global_step == 3
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2 and all("logs/0: the log is not written (" in e for e in errors)
