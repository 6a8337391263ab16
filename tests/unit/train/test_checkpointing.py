"""What a run saves when it is stopped, fails or has nowhere to write, and what it holds."""

import gc
import logging
import os
import random
import signal
import weakref
from collections import OrderedDict, namedtuple
from enum import IntEnum
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from saved_states import in_child
from toy_run import BATCHES, CONFIG, STEPS, PositionedLoader, losses, same_run, train

from ressl_plugin.config.diff import config_differences
from ressl_plugin.run import checkpoint
from ressl_plugin.run.plain_values import to_plain
from ressl_plugin.train import checkpointing, resume
from ressl_plugin.utils.errors import CheckpointError, NotSaved, RunFault, UserError
from ressl_plugin.utils.rng import restore_rng, rng_state


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    run = tmp_path_factory.mktemp("reference")
    assert in_child(train, run, PositionedLoader) == 0
    return run


# Stopped on purpose, and by mistake -------------------------------------------------------------


def send(number):
    def fault(loss):
        os.kill(os.getpid(), number)
        return loss

    return fault


def fail(loss):
    raise RuntimeError("in the middle of a step")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [2, 4, 7])
def test_signal_finishes_the_step_and_saves(tmp_path, uninterrupted, number, step):
    """Step 4 ends an epoch: its validation runs first."""
    settings = {"every": 0, "frequency": 100}
    code = in_child(train, tmp_path, PositionedLoader, fault=(step, send(number)), **settings)
    assert code == (1 if number == signal.SIGINT else 143)
    assert checkpoint.load(tmp_path)["global_step"] == step + 1
    assert in_child(train, tmp_path, PositionedLoader, **settings) == 0
    assert same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("fault", [None, (3, fail)])
def test_a_training_leaves_the_signals_and_the_memory_as_they_were(tmp_path, fault, monkeypatch):
    """A second SIGTERM handler on the first would swallow it, and hold the first trainer."""
    kept, numbers = [], (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    init = pl.Trainer.__init__

    def made(self, *args, **kwargs):
        kept.append(weakref.ref(self))
        init(self, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "__init__", made)
    before = [signal.getsignal(number) for number in numbers]
    for run in (tmp_path / "one", tmp_path / "two"):
        run.mkdir()
        try:
            train(run, PositionedLoader, fault=fault)
        except RuntimeError as error:
            error.__traceback__ = None
    assert [signal.getsignal(number) for number in numbers] == before
    gc.collect()
    assert len(kept) == 2 and [trainer() for trainer in kept] == [None, None]


def test_an_error_within_a_step_leaves_the_last_checkpoint(tmp_path, uninterrupted, caplog):
    with pytest.raises(RuntimeError, match="in the middle"), caplog.at_level(logging.WARNING):
        train(tmp_path, PositionedLoader, fault=(7, fail))
    assert f"the last good checkpoint is {tmp_path / 'last.ckpt'}" in caplog.text
    assert checkpoint.load(tmp_path)["global_step"] == 7
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, uninterrupted)


class Vanishing(PositionedLoader):
    """An image cannot be read any more when batch 7 of the run is fetched."""

    def __iter__(self):
        for batch in super().__iter__():
            if self.epoch == 1 and self.given == 3:
                self.given = 2  # it was not given out
                raise FileNotFoundError("image 17")
            yield batch


def test_an_error_between_steps_saves_them(tmp_path):
    with pytest.raises(FileNotFoundError):
        train(tmp_path, Vanishing, every=0)
    assert checkpoint.load(tmp_path)["global_step"] == 7
    assert in_child(train, tmp_path, PositionedLoader, every=0) == 0
    assert len(losses(tmp_path)) == STEPS, "no step was lost or repeated"
    assert len((tmp_path / "losses.0").read_text().splitlines()) == STEPS


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, caplog):
    bad = (7, lambda loss: loss * float("nan"))
    with caplog.at_level(logging.ERROR), pytest.raises(RunFault, match=r"last\.ckpt\. Try a lower"):
        train(tmp_path, PositionedLoader, fault=bad)  # and at the end it has to be said
    assert "not saved: the state is not finite" in caplog.text
    kept = checkpoint.load(tmp_path)
    assert kept["global_step"] == 7
    assert all(t.isfinite().all() for t in kept["state_dict"].values())


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, caplog):
    save, count = checkpoint.save, 0

    def sometimes(path, state):
        nonlocal count
        count += 1
        if count in (3, 4):
            raise NotSaved("no space left for it")
        return save(path, state)

    monkeypatch.setattr(checkpoint, "save", sometimes)
    with caplog.at_level(logging.ERROR):
        train(tmp_path, PositionedLoader)
    assert caplog.text.count("no space left for it; training goes on") == 2
    assert checkpoint.load(tmp_path)["global_step"] == STEPS


def test_the_first_save_must_succeed(tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(NotSaved, match=r"last\.ckpt not written"):
        train(tmp_path, PositionedLoader, resume=False)


# Contents ---------------------------------------------------------------------------------------


def test_generators_are_restored():
    draw = lambda: (random.random(), random.gauss(0, 1), np.random.randn(), torch.randn(2).tolist())
    random.gauss(0, 1), np.random.randn()  # leaves a second deviate in store
    state = rng_state()
    first = draw()
    draw()
    restore_rng(state)
    assert draw() == first


def test_what_is_loaded_lies_as_the_weights_do():
    """A run that was in channels_last goes on without it: a fused step reads by memory order."""
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.nn.Parameter(torch.zeros(4, 3, 5, 5))
        optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
        momentum = torch.arange(300.0).reshape(4, 3, 5, 5).to(memory_format=layout)
        state = {0: {"momentum_buffer": momentum}}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        checkpointing.lay_out([optimizer])
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        found.append(weight.detach())
    assert torch.equal(*found)


def test_a_checkpoint_holds_what_a_resume_needs(tmp_path):
    train(tmp_path, PositionedLoader, max_epochs=1)
    state = checkpoint.load(tmp_path)
    assert state[checkpointing.CONFIG]["method"] == CONFIG["method"]
    assert len(state[checkpointing.RNG]) == 1
    position = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    assert position == [{"epoch": 0, "given": BATCHES}]
    assert {"optimizer_states", "lr_schedulers", "callbacks"} <= state.keys()


def test_to_plain(tmp_path):
    Kind = IntEnum("Kind", "a b")
    Pair = namedtuple("Pair", "x y")
    value = {
        "cfg": OmegaConf.create({"a": 1, "b": "${a}"}),
        "numbers": [np.float32(0.5), np.int64(3), Kind.b, Pair(1, 2)],
        "array": np.arange(3),
        "path": Path("x"),
        "weights": OrderedDict(w=torch.ones(2)),
    }
    value["weights"]._metadata = {"": {"version": 2}}
    plain = to_plain(value)
    value["weights"]["w"].zero_(), value["numbers"].clear()
    checkpoint.save(tmp_path / "x.ckpt", plain)
    found = checkpoint.load(tmp_path / "x.ckpt")
    assert found["weights"]["w"].tolist() == [1, 1] and found["weights"]._metadata
    assert found["cfg"] == {"a": 1, "b": 1}
    assert found["numbers"] == [0.5, 3, 2, (1, 2)]
    assert found["array"].tolist() == [0, 1, 2] and found["path"] == "x"
    with pytest.raises(CheckpointError, match=r"checkpoint\['callbacks'\]\['f'\] is a .*function"):
        to_plain({"callbacks": {"f": draw_nothing}})


def draw_nothing():
    pass


# Another config ---------------------------------------------------------------------------------


def test_config_differences():
    saved = {
        "method": "ressl",
        "run_dir": "a",
        "max_epochs": 200,
        "method_kwargs": {"temperature_q": 0.1, "queue_size": 4096},
        "data": {"num_workers": 4, "dataset": "cifar10"},
        "augmentations": [{"crop_size": 32}],
    }
    now = OmegaConf.create(saved)
    now.run_dir, now.data.num_workers = "b", 0
    assert config_differences(saved, now) == []
    now.max_epochs = 400
    now.method_kwargs.temperature_q = 0.2
    now.batchnorm = {"groups": 8}
    now.augmentations[0].crop_size = 28
    assert config_differences(saved, now) == [
        "augmentations: [{'crop_size': 32}] -> [{'crop_size': 28}]",
        "batchnorm.groups: 0 -> 8",
        "max_epochs: 200 -> 400",
        "method_kwargs.temperature_q: 0.1 -> 0.2",
    ]


def test_a_key_that_an_older_version_did_not_know_has_its_default_there():
    saved = {"data": {"dataset": "cifar10"}, "method_kwargs": {"queue_size": 64}}
    now = OmegaConf.create(saved)
    now.data.interpolation, now.method_kwargs.predictor = "bicubic", False
    assert config_differences(saved, now) == config_differences(now, saved) == []
    now.data.interpolation, now.gradient_clip_val = "bilinear", 1.0
    assert config_differences(saved, now) == [
        "data.interpolation: bicubic -> bilinear",
        "gradient_clip_val: absent -> 1.0",
    ]


def test_where_the_data_are_is_no_difference():
    places = {
        "train_path": "a",
        "val_path": "b",
        "download": True,
        "num_workers": 2,
        "check": False,
    }
    saved = {"data": {"dataset": "cifar10", **places}}
    assert config_differences(saved, {"data": {"dataset": "cifar10"}}) == []


def test_resuming_with_another_config(tmp_path, caplog):
    found = checkpoint.Loaded(tmp_path, {checkpointing.CONFIG: {"optimizer": {"lr": 0.06}}})
    resume.check_same_config(found, {"optimizer": {"lr": 0.06}})
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.06 -> 0\.1.*resume_force"):
        resume.check_same_config(found, {"optimizer": {"lr": 0.1}})
    with caplog.at_level(logging.WARNING):
        resume.check_same_config(found, {"optimizer": {"lr": 0.1}, "resume_force": True})
    assert "optimizer.lr" in caplog.text
    resume.check_same_config(checkpoint.Loaded(tmp_path, {}), {})
