"""A training that waits for cores says so, once; one that has them does not."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ressl_plugin.train import contention
from ressl_plugin.train.contention import Contention

CPU = SimpleNamespace(device=torch.device("cpu"))
pytestmark = pytest.mark.skipif(not contention.SCHEDSTAT.exists(), reason="Linux counts this")


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@pytest.fixture
def beside_another():
    """This thread shares one core with a process that never rests."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # inherits the core
    yield
    other.kill()
    other.wait()
    os.sched_setaffinity(0, allowed)


def steps(callback, module=CPU, seconds=1.0):
    """Steps that compute for that long."""
    end = contention.time.monotonic() + seconds
    while contention.time.monotonic() < end:
        callback.on_train_batch_end(None, module, None, None, 0)


def test_waiting_for_a_core_is_said_once(beside_another, two_threads, caplog):
    callback = Contention(seconds=0.5)
    steps(callback)
    (line,) = caplog.messages
    assert "the processor is busy" in line and "OMP_NUM_THREADS=1" in line
    steps(callback, seconds=0.6)
    assert len(caplog.messages) == 1


def test_nothing_is_said_where_no_thread_waits(two_threads, monkeypatch, caplog):
    """A first thread that was let run most of the time, whatever else this machine does now."""
    start = contention.time.monotonic()
    waited = lambda: 0.2 * (contention.time.monotonic() - start)
    monkeypatch.setattr(contention, "seconds_without_a_core", waited)
    steps(Contention(seconds=0.1), seconds=0.3)
    assert not caplog.messages


@pytest.mark.parametrize(("threads", "device"), [(1, "cpu"), (2, "cuda")])
def test_nothing_is_said_where_threads_do_not_matter(
    beside_another, monkeypatch, caplog, threads, device
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    steps(Contention(seconds=0.1), SimpleNamespace(device=torch.device(device)), seconds=0.5)
    assert not caplog.messages
