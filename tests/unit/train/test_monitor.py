"""A collapse is seen in the epoch in which it happens; the metrics file is one process's."""

import errno
import io
import logging
import math
import os
import threading
import types

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.compat.tensorflow_stub.io import gfile

from ressl_plugin import config
from ressl_plugin.method import ressl
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train import monitor
from ressl_plugin.train.checkpointing import AtomicCheckpointIO, CheckpointCallback
from ressl_plugin.train.monitor import CollapseMonitor, Events, MetricsFile
from ressl_plugin.train.pretrain import pretrain


class Entropies(pl.LightningModule):
    """Logs its epochs' entropies as the method does: in its own hook."""

    def __init__(self, entropies):
        super().__init__()
        self.entropies, self.layer = entropies, torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def on_train_epoch_end(self):
        self.log("target_entropy", self.entropies[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def watch(entropies, warmup, folder):
    monitor = CollapseMonitor(warmup)
    trainer = pl.Trainer(
        max_epochs=len(entropies), accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[CheckpointCallback(folder, {}), monitor], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    module = Entropies(entropies)
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(2, 1)))
    assert "on_train_epoch_end" not in vars(module), "the module is as it was"
    return monitor.collapsed_at


@pytest.mark.parametrize(
    ("entropies", "warmup", "epoch"),
    [
        ([1.0], 0, 0),
        ([0.5], 0, None),
        ([0.5, 1.0, 0.5], 0, 1),
        ([0.5, 0.5, 1.0], 0, 2),
        ([1.0, 0.5], 1, None),
        ([1.0, 1.0], 1, 1),
    ],
)
def test_every_epoch_after_warmup_is_looked_at(tmp_path, caplog, entropies, warmup, epoch):
    with caplog.at_level(logging.WARNING):
        assert watch(entropies, warmup, tmp_path) == epoch
    assert caplog.text.count("collapse:") == (epoch is not None)
    if epoch is not None:
        assert f"in epoch {epoch} " in caplog.text


def test_the_checkpoint_of_that_epoch_knows_it(tmp_path):
    watch([1.0], 0, tmp_path)
    assert {"collapsed_at": 0} in checkpoint.load(tmp_path)["callbacks"].values()


def test_a_run_of_one_epoch_leaves_a_trace(tmp_path, monkeypatch):
    def uniform(z_s, z_t, queue, *taus):
        found = relational_loss(z_s, z_t, queue, *taus)
        return type(found)(found[0], torch.tensor(math.log(len(queue))))

    monkeypatch.setattr(ressl, "relational_loss", uniform)
    images = image_folder(tmp_path / "images", per_class=8, splits=("train",))
    words = [
        f"run_dir={tmp_path}/run", f"data.train_path={images}/train", "data.val_path=null",
        "backbone.name=timm:resnet10t", "backbone.stem=auto", "data.backend=batched",
        "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=40",
        "optimizer.batch_size=8", "max_epochs=1", "scheduler.warmup_epochs=0", "accelerator=cpu",
        "enable_progress_bar=false", "enable_model_summary=false",
    ]  # fmt: skip
    folder = pretrain(config.finish(config.load("digits/ressl", words)))
    (record,) = (r for r in results.read(folder) if r["metric"] == "collapsed_at")
    assert record["value"] == 0


class Full:
    """A disk without room: what is written to it raises."""

    def __init__(self, monkeypatch):
        self.full = False
        monkeypatch.setattr(os, "fsync", self.refusing(os.fsync))
        theirs = types.SimpleNamespace(**{**vars(io), "open": self.refusing(io.open)})
        monkeypatch.setattr(gfile, "io", theirs)  # TensorBoard's files

    def refusing(self, function):
        def call(*args, **kwargs):
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return call


def test_a_full_disk_ends_no_logging(tmp_path, monkeypatch, caplog):
    """Rows of metrics.csv wait for room; TensorBoard's events of that time are lost."""
    monkeypatch.setattr(monitor, "PAUSE", 0.0)
    monkeypatch.setattr(threading, "excepthook", lambda *_: None)  # TensorBoard's thread dies
    disk, loggers = Full(monkeypatch), [MetricsFile(tmp_path), Events(tmp_path)]

    def log(*steps):
        for logger in loggers:
            for step in steps:
                logger.log_metrics({"loss": 0.5}, step)
            logger.save()

    log(0, 1)
    before = (tmp_path / "metrics.csv").read_bytes()
    disk.full = True
    log(2, 3)
    log(4)
    assert (tmp_path / "metrics.csv").read_bytes() == before
    errors = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert len(errors) == 2 and "metrics.csv is not written (No space left" in errors[0]
    assert "TensorBoard's events are not written (No space left" in errors[1]
    disk.full = False
    log(5)
    for logger in loggers:
        logger.finalize("success")
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 7
    seen = [e.step for f in sorted(tmp_path.glob("events*")) for e in events(f)]
    assert {0, 1, 5} <= set(seen) <= set(range(6))


def events(file):
    return [e for e in event_file_loader.EventFileLoader(str(file)).Load() if e.summary.value]


def test_other_errors_of_tensorboard_are_not_hidden(tmp_path):
    with pytest.raises(ValueError, match="not supported"):
        Events(tmp_path).log_metrics({"loss": "a word"}, 0)


def test_the_death_of_a_worker_keeps_its_own_words(tmp_path, monkeypatch):
    """Raised by a signal's handler wherever the process is, here in TensorBoard's writer."""
    died = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    def dies(*_, **__):
        raise died

    logger = Events(tmp_path)
    monkeypatch.setattr(type(logger.experiment), "add_scalar", dies)
    with pytest.raises(RuntimeError) as found:
        logger.log_metrics({"loss": 1.0}, 0)
    assert found.value is died


def test_a_resumed_runs_metrics_are_there_at_every_moment(tmp_path, recwarn):
    """Lightning's own logger deletes them when it is opened."""
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,loss,step\n0,1.0,0\n0,0.5,1\n")
    logger = MetricsFile(tmp_path)
    logger.log_hyperparams({"lr": 1})
    logger.log_metrics({"loss": 0.4}, 2)
    assert len(file.read_text().splitlines()) == 3
    logger.keep(2)
    assert len(file.read_text().splitlines()) == 4
    assert not [w for w in recwarn if "will be deleted" in str(w.message)]


def test_only_one_process_drops_rows(tmp_path, monkeypatch):
    file = tmp_path / "metrics.csv"
    file.write_text("step,loss\n0,1.0\n1,0.5\n")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    MetricsFile(tmp_path).keep(1)
    assert len(file.read_text().splitlines()) == 3
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    MetricsFile(tmp_path).keep(1)
    assert file.read_text().splitlines() == ["step,loss", "0,1.0"]
