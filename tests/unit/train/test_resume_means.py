"""An epoch that is interrupted and resumed has the means of the whole epoch."""

import copy
import csv
import logging
import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from helpers import Interrupted, Stop, image_folder, make_config
from ranks import on_ranks

from ressl_plugin import config
from ressl_plugin.method import online
from ressl_plugin.method.ressl import ReSSL
from ressl_plugin.run import checkpoint
from ressl_plugin.run.plain_values import to_plain
from ressl_plugin.train.checkpointing import Preempted
from ressl_plugin.train.pretrain import pretrain
from ressl_plugin.utils import distributed
from ressl_plugin.utils.average_meter import AverageMeter

SMALL = {"name": "timm:resnet10t", "kwargs": {"channels": [4, 4, 8, 8]}, "stem": "auto"}
MEANS = ("train_ressl_loss", "target_entropy", "embedding_spread", "train_acc5", "val_loss")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(name, stop=None, *words) -> its directory; 2 epochs of 5 steps, validated in both."""
    root = tmp_path_factory.mktemp("means")
    images = image_folder(root / "images", classes=10, per_class=4)
    loaded = config.load("digits/ressl")  # once: it takes a quarter of the time of a run

    def run(name, stop=None, *words):
        words = [
            f"run_dir={root}/{name}", f"data.train_path={images}/train", "accelerator=cpu",
            f"data.val_path={images}/val", "backbone.name=timm:resnet10t", "backbone.stem=auto",
            "backbone.kwargs={channels: [8, 8, 16, 16]}", "method_kwargs.queue_size=40",
            "data.backend=batched", "optimizer.batch_size=8", "max_epochs=2", "seed=3",
            "checkpoint.every_n_steps=1", "knn_eval.enabled=true", "knn_eval.every=1",
            "enable_progress_bar=false", "enable_model_summary=false", "resume=true", *words,
        ]  # fmt: skip
        cfg = copy.deepcopy(loaded)
        cfg.merge_with_dotlist(words)
        pretrain(config.finish(cfg), [stop if isinstance(stop, pl.Callback) else Stop(stop)])
        return root / name

    return run


@pytest.fixture(scope="module")
def whole(run):
    return run("whole")


def epochs(folder):
    """Each epoch's row of means: epoch -> column -> value."""
    found = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["epoch"]:
                filled = {k: float(v) for k, v in row.items() if v and k != "step"}
                found.setdefault(int(row["epoch"]), {}).update(filled)
    return found


class Told(pl.Callback):
    """A signal comes while epoch `epoch` is validated."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_validation_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_whose_validation_was_told_to_stop_has_its_means(run, whole, epoch):
    with pytest.raises(Preempted):
        run(f"told{epoch}", Told(epoch))
    assert epochs(run(f"told{epoch}")) == epochs(whole)


@pytest.mark.parametrize("step", [5, 8])
def test_a_resumed_epochs_means_are_the_whole_epochs(run, whole, caplog, step):
    """Stopped in step `step`: in an epoch's last step, in the middle of the second epoch."""
    name = f"stopped{step}"
    with pytest.raises(Interrupted):
        run(name, step)
    with caplog.at_level(logging.INFO):
        again = run(name)
    ours, theirs = epochs(again), epochs(whole)
    resumed = (step - 1) // 5
    for epoch in theirs:
        for column in MEANS:
            assert ours[epoch][column] == theirs[epoch][column]
    assert "val_knn_acc1" in theirs[resumed] and "val_knn_acc5" in theirs[resumed]
    assert "val_knn_acc1" not in ours[resumed] and "val_knn_acc5" not in ours[resumed]
    assert ours[1 - resumed] == theirs[1 - resumed], "the other epoch has all of it"
    said = [r.message for r in caplog.records if "no val_knn_acc1" in r.message]
    assert len(said) == 1 and said[0].startswith(f"epoch {resumed + 1} ")
    states = [checkpoint.load(folder)["state_dict"] for folder in (again, whole)]
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())


def test_between_epochs_nothing_is_lost(run, whole):
    with pytest.raises(Interrupted):
        run("between", 6)
    assert epochs(run("between")) == epochs(whole)


def test_a_checkpoint_without_means_is_resumed(run, whole):
    """And a log that is no text."""
    with pytest.raises(Interrupted):
        run("older", 4)
    file = whole.parent / "older" / checkpoint.NAME
    state = checkpoint.load(file)
    del state[online.STATE]
    checkpoint.save(file, state)
    (file.parent / "logs" / "0" / "metrics.csv").write_bytes(b"\xff\xfe garbage")
    states = [checkpoint.load(folder)["state_dict"] for folder in (run("older"), whole)]
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    assert 1 in epochs(file.parent)


def saved(folder):
    """Each rank's means of two batches, and what a checkpoint of all ranks holds of them."""
    model = ReSSL(make_config(backbone=SMALL))
    means = model.online.means
    for step in range(2):
        r, n = distributed.rank(), torch.tensor(3 + step)
        means.add({"a": torch.tensor(0.1 * r + step)}, 4 + r)
        means.add({"labelled": torch.tensor(float(r))}, n)
    state = {}
    model.online.on_save_checkpoint(None, model, state)
    if distributed.rank() == 0:
        checkpoint.save(folder / "means.ckpt", to_plain(state))
    return means.pop()


def resumed(folder):
    """The means of every rank's module that goes on from there; own weight of `a`, too."""
    model = ReSSL(make_config(backbone=SMALL))
    ours = model.online
    ours.on_load_checkpoint(None, model, checkpoint.read(folder / "means.ckpt"))
    again = {}
    ours.on_save_checkpoint(None, model, again)  # before the first step: nothing is lost either
    ours.on_load_checkpoint(None, model, again)
    ours.on_train_batch_start(None, model, None, 0)
    ours.on_train_batch_start(None, model, None, 1)
    own = ours.means.state().get("train", {}).get("a", (None, None))[1]
    return ours.means.pop(), own


def test_every_rank_has_its_own_again(tmp_path):
    expected, _ = on_ranks(2, saved, tmp_path / "a", tmp_path, group=True)
    both = on_ranks(2, resumed, tmp_path / "b", tmp_path, group=True)
    assert both == [(expected, 8), (expected, 10)]
    alone, own = resumed(tmp_path)
    assert own == 18
    for name, value in expected.items():
        assert alone[name] == pytest.approx(float(value), rel=1e-6)


def test_more_ranks_than_before(tmp_path):
    expected = saved(tmp_path)
    first, second = on_ranks(2, resumed, tmp_path / "b", tmp_path, group=True)
    assert first == (expected, 8), "the first rank holds it all"
    assert second == (expected, 0)


def test_means_go_on_from_a_state():
    one, other = AverageMeter(), AverageMeter()
    for means in (one, other):
        means.add({"a": torch.tensor(0.1)}, 3)
        means.add({"b": torch.tensor(0.7)}, torch.tensor(2), "val")
    state = one.state()
    one = AverageMeter()
    one.load([state], "cpu")
    for means in (one, other):
        means.add({"a": torch.tensor(0.3)}, 5)
    assert state["train"]["a"][1] == 3, "a state is not changed by what follows"
    assert one.pop() == other.pop() and one.pop("val") == other.pop("val")
