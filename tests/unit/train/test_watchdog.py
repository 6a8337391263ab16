"""A step that does not end ends the process; one that goes on does not."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from saved_states import in_child

from ressl_plugin.train import watchdog
from ressl_plugin.train.watchdog import Watchdog

ONE = SimpleNamespace(world_size=1)
MINUTES = 1 / 60


def hang(folder, act=lambda watch: None, then=2.0):
    """Ends with 0 if it is left alone."""
    os.dup2(os.open(folder / "err.txt", os.O_WRONLY | os.O_CREAT), 2)
    watch = Watchdog(folder, MINUTES)
    watch.setup(ONE, None, "fit")
    act(watch)
    time.sleep(then)


def test_what_hangs_is_ended_with_the_stacks_of_all_threads(tmp_path):
    (tmp_path / "last.ckpt").touch()
    assert in_child(hang, tmp_path, then=20.0) == os.EX_TEMPFAIL
    text = (tmp_path / "err.txt").read_text()
    assert "in hang" in text and "in _watch" in text
    assert "faults.timeout" in text and f"{tmp_path}/last.ckpt, resume=true" in text


@pytest.mark.parametrize("sign", ["on_train_batch_end", "on_validation_batch_start"])
def test_signs_of_life(tmp_path, sign):
    watch = Watchdog(tmp_path, minutes=60)
    watch._deadline = time.monotonic()
    getattr(watch, sign)(ONE, None)
    assert watch._deadline > time.monotonic()


@pytest.mark.parametrize("end", ["teardown", "on_exception"])
def test_a_run_that_is_over_is_not_watched(tmp_path, end):
    act = lambda watch: getattr(watch, end)(ONE, None, RuntimeError("gloo/transport"))
    assert in_child(hang, tmp_path, act) == 0


def test_zero_is_never(tmp_path):
    def act(watch):
        watch.minutes = 0
        watch.on_train_batch_start(ONE, None)

    assert in_child(hang, tmp_path, act) == 0


def test_a_run_that_was_stopped_for_a_while_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "PAUSE", 0.2)

    def act(watch):
        watch.minutes = 2 / 60
        watch.on_train_batch_start(ONE, None)
        subprocess.run(["sh", "-c", f"kill -STOP {os.getpid()}; sleep 3; kill -CONT {os.getpid()}"])

    assert in_child(hang, tmp_path, act, then=0.5) == 0


def test_a_process_that_lost_a_rank_ends_though_what_tidies_up_waits():
    code = """
import atexit, time
from ressl_plugin.cli.main import guarded
from ressl_plugin.train import watchdog
from ressl_plugin.utils.errors import RankLost
def lost():
    raise RankLost("another rank is gone")
watchdog.TO_LEAVE = 0.5
atexit.register(time.sleep, 600)
raise SystemExit(guarded(lost))
"""
    found = subprocess.run([sys.executable, "-c", code], timeout=280, capture_output=True)
    assert found.returncode == os.EX_TEMPFAIL and found.stderr == b"ressl: another rank is gone\n"
