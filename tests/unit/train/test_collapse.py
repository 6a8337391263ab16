"""A collapse is seen, and a passing uniform target is none."""

import logging
import math

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder

from ressl_plugin import config
from ressl_plugin.method import ressl
from ressl_plugin.method.loss import relational_loss
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train.checkpoint_io import AtomicCheckpointIO
from ressl_plugin.train.checkpointing import CheckpointCallback
from ressl_plugin.train.collapse import CollapseMonitor
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
        max_epochs=len(entropies), accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[monitor, CheckpointCallback(folder, {})], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(Entropies(entropies), torch.utils.data.DataLoader(torch.ones(2, 1)))
    return monitor.collapsed_at


@pytest.mark.parametrize(
    ("entropies", "warmup", "epoch"),
    [
        ([1.0], 0, 0),
        ([0.5], 0, None),
        ([0.5, 1.0, 0.5], 0, None),
        ([0.5, 0.5, 1.0], 0, 2),
        ([1.0, 0.5], 1, None),
        ([1.0, 1.0], 1, 1),
        ([0.5, *[1.0] * 3, 0.9, *[1.0] * 4, 0.5], 0, None),  # left it twice, in time
        ([0.5, *[1.0] * 6, 0.5], 0, 5),
        ([*[1.0] * 6, 0.5], 2, None),
    ],
)
def test_a_target_that_stays_uniform_after_warmup(tmp_path, caplog, entropies, warmup, epoch):
    with caplog.at_level(logging.WARNING):
        assert watch(entropies, warmup, tmp_path) == epoch
    assert caplog.text.count("collapse: since epoch") == (epoch is not None)
    if epoch is not None:
        assert f"in epoch {epoch + 1})" in caplog.text  # as the progress line counts


def test_a_resumed_run_goes_on_counting():
    monitor, resumed = CollapseMonitor(0), CollapseMonitor(0)
    monitor.uniform_epochs = 4
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.uniform_epochs == 4
    resumed.load_state_dict({"collapsed_at": 3})  # of 0.1.0
    assert (resumed.collapsed_at, resumed.uniform_epochs) == (3, 0)


def test_the_checkpoint_of_that_epoch_knows_it(tmp_path):
    watch([1.0], 0, tmp_path)
    states = checkpoint.load(tmp_path)["callbacks"].values()
    assert {"collapsed_at": 0, "uniform_epochs": 1} in states


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
