"""A checkpoint is written while the training goes on, and is that of the step before."""

import os
import signal
import threading
import time

import pytest
import torch
from saved_states import in_child
from toy_run import STEPS, PositionedLoader, losses, same_run, train

from ressl_plugin.run import checkpoint
from ressl_plugin.train.checkpoint_io import AtomicCheckpointIO, all_finite
from ressl_plugin.utils.errors import CheckpointError, NotSaved

PATIENCE = 30  # seconds for what happens at once, or never
EVERY_SECOND = {"every": 2, "frequency": 100}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("reference")
    assert in_child(train, run, PositionedLoader, **EVERY_SECOND) == 0
    return run


def state(**more):
    return {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [], **more}


def before_save(monkeypatch, happens):
    """`happens(step)` in the writer, before the state of that step is written."""
    save = checkpoint.save

    def call(path, saved):
        happens(saved["global_step"])
        return save(path, saved)

    monkeypatch.setattr(checkpoint, "save", call)


def test_the_training_goes_on_during_a_slow_write(tmp_path, monkeypatch):
    """All but the first, which must succeed; and the next one waits for it."""
    steps_on, events = threading.Event(), []

    def happens(step):
        assert not events or events[-1] == "end"
        events.append(f"begin {step}")
        if step == 3:
            assert steps_on.wait(PATIENCE)
        events.append("end")

    before_save(monkeypatch, happens)
    train(tmp_path, PositionedLoader, fault=(3, lambda loss: steps_on.set() or loss))
    assert events == [e for n in range(1, STEPS + 1) for e in (f"begin {n}", "end")]
    assert checkpoint.load(tmp_path)["global_step"] == STEPS


@pytest.mark.parametrize(("moment", "kept"), [("before", 2), ("within", 2), ("after", 4)])
def test_killed_while_later_steps_are_taken(tmp_path, uninterrupted, moment, kept):
    """Nothing of them is in the checkpoint: a run that goes on from it is the same run."""
    steps_on, save, verify = threading.Event(), checkpoint.save, checkpoint.verify

    def dies(path, saved):
        if saved["global_step"] == 4:
            assert steps_on.wait(PATIENCE)
            if moment == "within":
                checkpoint.verify = lambda written: os._exit(9)
            if moment != "before":
                save(path, saved)
            os._exit(9)
        return save(path, saved)

    def work():
        checkpoint.save = dies
        fault = (5, lambda loss: steps_on.set() or loss)
        train(tmp_path, PositionedLoader, fault=fault, **EVERY_SECOND)

    assert in_child(work) == 9 and checkpoint.verify is verify
    assert max(losses(tmp_path)) >= 5 and checkpoint.load(tmp_path)["global_step"] == kept
    assert in_child(train, tmp_path, PositionedLoader, **EVERY_SECOND) == 0
    assert same_run(tmp_path, uninterrupted)


def test_a_signal_waits_for_the_save_under_way_and_its_own(tmp_path, monkeypatch):
    before_save(monkeypatch, lambda step: time.sleep(0.2))
    fault = (3, lambda loss: os.kill(os.getpid(), signal.SIGTERM) or loss)
    assert in_child(train, tmp_path, PositionedLoader, fault=fault) == 143
    assert checkpoint.load(tmp_path)["global_step"] == 4
    assert checkpoint.read(checkpoint.previous(tmp_path / "last.ckpt"))["global_step"] == 3


def test_a_second_signal_while_a_save_is_waited_for_does_not_begin_another(tmp_path, monkeypatch):
    def happens(step):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        (tmp_path / "saves").open("a").write(f"{step} ")

    before_save(monkeypatch, happens)
    assert in_child(train, tmp_path, PositionedLoader) == 143
    assert (tmp_path / "saves").read_text() == "1 "
    assert checkpoint.load(tmp_path)["global_step"] == 1


@pytest.mark.parametrize(
    ("error", "at", "steps"),
    [(NotSaved("no space left"), 1, 1), (NotSaved("no space left"), STEPS, STEPS),
     (TypeError("a bug"), 2, 3)],
)  # fmt: skip
def test_what_fails_in_the_writer_is_raised(tmp_path, monkeypatch, error, at, steps):
    """At once of the first and of the last save; a bug no later than the next save."""

    def fails(step):
        if step == at:
            raise error

    before_save(monkeypatch, fails)
    with pytest.raises(type(error), match=str(error)):
        train(tmp_path, PositionedLoader)
    assert len(losses(tmp_path)) == steps


def test_a_save_that_nobody_waited_for_is_told_of_in_the_end(tmp_path):
    (tmp_path / "file").touch()
    io = AtomicCheckpointIO()
    io.save_checkpoint(state(), tmp_path / "file" / "x.ckpt")
    with pytest.raises(NotSaved, match=r"x\.ckpt not written"):
        io.teardown()
    io.save_checkpoint(state(bug=object()), tmp_path / "x.ckpt")
    assert isinstance(io.wait(), CheckpointError) and io.wait() is None
    io.save_checkpoint(state(), tmp_path / "x.ckpt")
    io.teardown()
    assert checkpoint.load(tmp_path / "x.ckpt")["state_dict"]["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite(bad):
    weights = {"w": torch.full((4,), 3e38), "steps": torch.tensor(3), "none": torch.empty(0)}
    momentum = torch.zeros(2, 2)
    saved = {
        "state_dict": weights,
        "optimizer_states": [{"state": {0: {"m": momentum, "n": None}}}],
    }
    assert all_finite(saved), "though the sum is not"
    momentum[1, 1] = bad
    assert not all_finite(saved)
    momentum.zero_()
    weights["w"][2] = bad
    assert not all_finite(saved)
