"""checkpoint.best: the epoch that it names is kept, whatever comes after it."""

import math
import os
from types import SimpleNamespace

import pytest
import toy_run
from omegaconf import OmegaConf
from saved_states import NEW, OLD, OLDER, same, state

from ressl_plugin.config import finish, schema
from ressl_plugin.run import checkpoint, directories
from ressl_plugin.run.checkpoint_schema import check_training
from ressl_plugin.train import best, checkpointing
from ressl_plugin.utils.errors import CheckpointError, NotSaved, UserError

VALIDATION_STEP = toy_run.Toy.validation_step
ONE = SimpleNamespace(broadcast=lambda value: value)


def epochs(criterion, *logged):
    """Which of the epochs, each a dict of what it logs, are the best so far."""
    found, trainer = best.Best(criterion), SimpleNamespace(callback_metrics={}, strategy=ONE)
    told = []
    for values in logged:
        trainer.callback_metrics.update(values)  # as Lightning: earlier values stay
        told.append(found.beaten(trainer))
        found.settle(saved=True)
    return told


def test_every_criterion_of_the_schema_is_known():
    (kind,) = (f.metadata["kind"] for k, f in schema.walk(schema.Config) if k == "checkpoint.best")
    assert set(kind.choices) == set(best.CRITERIA)


@pytest.mark.parametrize(
    ("criterion", "name", "values", "better"),
    [
        ("knn", "val_knn_acc1", (50, 60, 55, 60, 61), (True, True, False, False, True)),
        ("rankme", "val_rankme", (9.0, 8.0, 9.5), (True, False, True)),
        ("rankme", "train_rankme", (9.0, 8.0, 9.5), (True, False, True)),
        ("alpha_req", "val_alpha_req", (math.nan, 2.0, 0.5, 1.2), (False, True, True, True)),
        ("uniformity", "val_uniformity", (-1.0, -2.0, -1.5), (True, True, False)),
    ],
)
def test_what_is_better(criterion, name, values, better):
    assert epochs(criterion, *({name: value} for value in values)) == list(better)


def test_what_is_not_logged_is_not_better():
    assert epochs("knn", {"val_acc1": 9}, {"val_knn_acc1": 5}, {}) == [False, True, False]
    assert epochs(None, {"val_knn_acc1": 9}) == [False]


def training(run, monkeypatch, scores, criterion="linear", **kwargs):
    """A toy run whose epochs log these scores."""

    def validation_step(self, batch, batch_idx):
        VALIDATION_STEP(self, batch, batch_idx)
        self.log("val_acc1", float(scores[self.current_epoch]))

    monkeypatch.setattr(toy_run.Toy, "validation_step", validation_step)
    settings = {**toy_run.CONFIG["checkpoint"], "best": criterion}
    monkeypatch.setitem(toy_run.CONFIG, "checkpoint", settings)
    toy_run.train(run, toy_run.PositionedLoader, **kwargs)
    return checkpoint.load(run / "last.ckpt")["epoch"], run / "best.ckpt"


def epoch(file):
    return checkpoint.read(file)["epoch"]


@pytest.mark.parametrize("frequency", [1, 100])
def test_the_best_epoch_is_kept(tmp_path, monkeypatch, frequency):
    last, file = training(tmp_path, monkeypatch, (40, 60, 50), frequency=frequency, every=0)
    assert (last, epoch(file)) == (2, 1)
    assert directories.best(tmp_path) == file


def test_a_resumed_run_knows_how_good_it_was(tmp_path, monkeypatch):
    training(tmp_path, monkeypatch, (60,), max_epochs=1)
    last, file = training(tmp_path, monkeypatch, (0, 50, 55))
    assert (last, epoch(file)) == (2, 0)
    assert checkpoint.read(file)["callbacks"]["CheckpointCallback"]["score"] == 60


def test_an_epoch_whose_save_failed_is_not_the_best(tmp_path, monkeypatch, caplog):
    save = checkpoint.save

    def sometimes(path, state, **more):
        if state["epoch"] == 1:
            raise NotSaved("no space left for it")
        return save(path, state, **more)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    last, file = training(tmp_path, monkeypatch, (10, 50, 30, 40), every=0, max_epochs=4)
    assert "no space left for it; training goes on" in caplog.text
    assert (last, epoch(file)) == (3, 3)
    assert checkpoint.read(file)["callbacks"]["CheckpointCallback"]["score"] == 40


def test_the_best_of_another_directory_is_not_this_ones(tmp_path, monkeypatch):
    training(tmp_path, monkeypatch, (60,), max_epochs=1)
    (tmp_path / "best.ckpt").unlink()  # as in a new run_dir
    _, file = training(tmp_path, monkeypatch, (0, 50, 55))
    assert epoch(file) == 2


def test_another_criterion_begins_anew(tmp_path, monkeypatch):
    training(tmp_path, monkeypatch, (60,), max_epochs=1)
    of = checkpointing.CheckpointCallback(tmp_path, {"checkpoint": {"best": "knn"}})
    of.load_state_dict({"criterion": "linear", "score": 60.0})
    assert of.best.score is None and of.state_dict() == {}


def test_none_is_said(tmp_path, monkeypatch, caplog):
    _, file = training(tmp_path, monkeypatch, (1, 2, 3), criterion="knn")
    assert not file.exists() and "checkpoint.best=knn: never logged" in caplog.text
    with pytest.raises(UserError, match=r"^no .*best\.ckpt; .*checkpoint\.best=knn"):
        directories.best(tmp_path)


@pytest.mark.parametrize("links", [True, False])
def test_the_best_stays_while_the_last_goes_on(tmp_path, monkeypatch, links):
    if not links:

        def link(*paths):
            raise PermissionError(1, "no hard links here")

        monkeypatch.setattr(os, "link", link)
    last, kept = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    checkpoint.save(last, state(OLDER), best=True)
    assert os.path.samefile(last, kept) == links
    checkpoint.save(last, state(OLD))
    assert same(checkpoint.read(kept), OLDER) and same(checkpoint.read(last), OLD)
    checkpoint.save(last, state(NEW), best=True)
    assert same(checkpoint.read(kept), NEW)
    assert same(checkpoint.read(checkpoint.previous(last)), OLD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "previous"]


def test_a_score_that_is_none_is_refused(tmp_path, monkeypatch):
    training(tmp_path, monkeypatch, (40,), max_epochs=1)
    state = checkpoint.load(tmp_path)
    state["callbacks"]["CheckpointCallback"]["score"] = "high"
    with pytest.raises(CheckpointError, match="score"):
        check_training("last.ckpt", state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": {"best": "knn"}}, "checkpoint.best=knn: knn_eval.enabled=true measures"),
        ({"checkpoint": {"best": "rankme"}}, "checkpoint.best=rankme: quality_eval.enabled=true"),
        ({"checkpoint": {"best": "accuracy"}}, "checkpoint.best"),
        ({"quality_eval": {"enabled": True}, "method": "simclr", "method_kwargs": {}}, "quality"),
        ({"quality_eval": {"every": 0}}, "quality_eval.every=0"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes, message):
    from helpers import make_config

    with pytest.raises(UserError, match=f"config: {message}"):
        finish(OmegaConf.merge(make_config(), changes))
