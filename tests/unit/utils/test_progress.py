"""A terminal gets a bar, a file a line every half minute; standard output gets none of it."""

import io
import logging
import sys

import lightning.pytorch as pl
import pytest
import torch
from helpers import image_folder

from ressl_plugin import config
from ressl_plugin.train.pretrain import pretrain
from ressl_plugin.train.progress import Progress
from ressl_plugin.utils import progress


class Terminal(io.StringIO):
    """What a person would see there, redrawn lines and all."""

    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when they are told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress.Lines, "said", None)
    return now


def test_a_file_gets_a_line_every_half_minute(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for what in ("features", "pixels"):  # the pause is between lines of any bar
        for _ in progress.progress_bar(
            range(50), desc=what, unit="batches", mininterval=0, miniters=1
        ):
            clock[0] += 1.0
    lines = sys.stderr.getvalue().splitlines()
    assert len(lines) == 3 and not any("\r" in line or "%" in line for line in lines)
    assert lines[0].startswith("features: 30/50 batches") and lines[1].startswith("pixels: 10/50")
    progress.say(lambda: "too early")
    progress.say(lambda: "the last one", must=True)
    assert sys.stderr.getvalue().splitlines()[3:] == ["the last one"]


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for _ in progress.progress_bar(range(5), desc="features", mininterval=0, miniters=1):
        progress.say(lambda: "a line above it")
    seen = sys.stderr.getvalue()
    assert "features:  80%" in seen and seen.count("a line above it\n") == 5


WORDS = [
    "backbone.name=timm:resnet10t", "backbone.stem=auto", "data.backend=batched",
    "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=40",
    "optimizer.batch_size=8", "max_epochs=2", "accelerator=cpu", "precision=bf16-mixed",
    # of 32 pixels: PyTorch 2.14.1's bf16 gradient of a stride over 1x1 is wrong (docs/faq.md)
    "augmentations=[{preset: contrastive, crop_size: 32}, {preset: weak, crop_size: 32}]",
]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_a_training(tmp_path, monkeypatch, capsys, recwarn, terminal):
    """An epoch's line has its mean loss and the kNN accuracy; Lightning's own lines are not there,
    with or without a root logger that repeats them."""
    images = image_folder(tmp_path / "images", per_class=8)
    words = [*WORDS, f"run_dir={tmp_path}/run", f"data.train_path={images}/train",
             f"data.val_path={images}/val"]  # fmt: skip
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(progress, "PAUSE", float("inf"))  # however long the machine takes
    handler = logging.StreamHandler(stderr)
    logging.getLogger().addHandler(handler)
    before = logging.getLogger("lightning.pytorch").level
    try:
        pretrain(config.finish(config.load("digits/ressl", words)))
    finally:
        logging.getLogger().removeHandler(handler)
    assert logging.getLogger("lightning.pytorch").level == before
    seen = stderr.getvalue()
    epochs = [line for line in seen.replace("\r", "\n").splitlines() if "val_knn_acc1" in line]
    assert [line.split(":")[0] for line in epochs] == ["epoch 1/2", "epoch 2/2"][not terminal :]
    assert all("train_ressl_loss " in line and "val_acc1 " in line for line in epochs)
    assert ("epoch 1/2:   0%" in seen) == terminal
    assert not any(word in seen for word in ("GPU available", "Tip", "Params", "Trainer.fit"))
    assert capsys.readouterr().out == ""
    assert not any("model summary" in str(one.message) for one in recwarn)


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.log("loss", batch.mean(), prog_bar=True)
        self.log("train_loss", batch.mean(), on_epoch=True, on_step=False)
        return self.weight + batch.mean()

    def on_train_epoch_end(self):
        self.log("train_embeddings_loss", self.current_epoch + 1.0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, epochs, folder):
    """Three steps an epoch, of losses 0, 1 and 5."""
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[Progress()], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.tensor([0.0, 1.0, 5.0])))


def test_the_loss_of_the_epoch_is_its_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    fit(Line(), 2, tmp_path)
    for epoch in (1, 2):
        means = f"epoch {epoch}/2: train_embeddings_loss {epoch}.00, train_loss 2.00, "
        assert sys.stderr.getvalue().count(means) == 1


def test_the_lines_of_a_bar_leave_long_epochs_theirs(tmp_path, monkeypatch, clock):
    class Slow(Line):
        def training_step(self, batch, batch_idx):
            clock[0] += 11.0
            progress.say(lambda: "a step")  # as a bar does
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress.Lines.said = clock[0]
    fit(Slow(), 3, tmp_path)
    lines = sys.stderr.getvalue().splitlines()
    assert lines.count("a step") >= 2
    epochs = [line[:9] for line in lines if "train_loss" in line]
    assert epochs == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
