"""A resume asks what the data are, not where they are."""

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
from commands import command, last_line, run
from helpers import image_folder
from omegaconf import OmegaConf

from ressl_plugin.cli import main
from ressl_plugin.data import identity
from ressl_plugin.data.training import DATA
from ressl_plugin.method import registry
from ressl_plugin.run import checkpoint
from ressl_plugin.train import resume
from ressl_plugin.utils.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    registry.register()
    return image_folder(tmp_path_factory.mktemp("images"), per_class=16, splits=("train",))


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A run stopped in the middle of its first epoch."""
    folder = tmp_path_factory.mktemp("run")
    words = command(images, folder, "max_epochs=1", "data.download=true")
    code, text = run(folder, words, lambda: os.kill(os.getpid(), signal.SIGINT), 2)
    assert code == main.INTERRUPTED, text
    return folder


def resumed(stopped, tmp_path, images, *more):
    shutil.copytree(stopped, tmp_path / "run")
    words = command(images, tmp_path / "run", "max_epochs=1", "resume=true", *more)
    return run(tmp_path / "run", words)


def test_a_copy_elsewhere_is_the_same_data(stopped, images, tmp_path):
    shutil.copytree(images, tmp_path / "scratch", copy_function=shutil.copy)
    code, text = resumed(stopped, tmp_path, tmp_path / "scratch", "data.num_workers=1")
    assert code == 0, text
    assert checkpoint.load(tmp_path / "run")["global_step"] == 6


def test_other_images_are_refused_before_anything_is_done(stopped, images, tmp_path):
    shutil.copytree(images, tmp_path / "changed")
    (tmp_path / "changed" / "train" / "class1" / "3.png").unlink()
    code, text = resumed(stopped, tmp_path, tmp_path / "changed")
    assert code == main.USER_MISTAKE
    assert "was trained on other data" in last_line(text) and "images 48 -> 47" in last_line(text)
    assert checkpoint.load(tmp_path / "run")["global_step"] == 3


def test_forced_data_cannot_go_on_in_the_middle_of_an_epoch(stopped, images, tmp_path):
    shutil.copytree(images, tmp_path / "changed")
    (tmp_path / "changed" / "train" / "class1" / "3.png").unlink()
    code, text = resumed(stopped, tmp_path, tmp_path / "changed", "resume_force=true")
    assert code == main.USER_MISTAKE
    assert "images is 48, now it is 47" in last_line(text)
    assert "continues" not in last_line(text)


def test_a_sweep_takes_a_cell_on_the_same_images_only(images, tmp_path):
    words = ["max_epochs=1", "checkpoint.every_n_steps=0", "-m", "seed=1,2"]
    assert run(tmp_path, command(images, tmp_path, *words))[0] == 0
    assert identity.of_run(tmp_path / "seed=1") == identity.of_run(tmp_path / "seed=2")
    shutil.copytree(images, tmp_path / "copy")
    assert run(tmp_path, command(tmp_path / "copy", tmp_path, *words))[0] == 0
    other = shutil.copytree(images, tmp_path / "other")
    (other / "train" / "class1" / "3.png").unlink()
    code, text = run(tmp_path, command(other, tmp_path, *words))
    assert code == main.USER_MISTAKE and "images 48 -> 47" in last_line(text)


CONFIG = OmegaConf.create({"data": {"train_path": "here"}, "resume_force": False})
SAVED = {"images": 4, "classes": 2, "digest": "ab"}


def check(state, now=SAVED, **changes):
    found = checkpoint.Loaded(Path("last.ckpt"), state)
    resume.check_same_data(found, OmegaConf.merge(CONFIG, changes), now)


def test_what_is_compared(caplog):
    check({DATA: {"train": SAVED}})
    other = {**SAVED, "digest": "cd"}
    with pytest.raises(UserError, match=r"other names, sizes.*resume_force"):
        check({DATA: {"train": SAVED}}, other)
    with caplog.at_level(logging.WARNING):
        check({DATA: {"train": SAVED}}, other, resume_force=True)
    assert "going on with other data" in caplog.text


@pytest.mark.parametrize("state", [None, 5, {}, {"train": None}, {"train": {"images": 4}}])
def test_a_damaged_entry_is_named(state):
    with pytest.raises(UserError, match=r"PretrainData\.train"):
        check({DATA: state})


def test_checkpoints_of_earlier_versions_and_of_the_host_are_taken(caplog):
    with caplog.at_level(logging.WARNING):
        for state in ({}, {"ressl_config": {"data": {"train_path": "here"}}}):
            check(state)
        assert not caplog.records
        check({"ressl_config": {"data": {"train_path": "there"}}})
    assert "was trained on there" in caplog.text
