"""Shared by all tests: one thread a process keeps parallel workers from fighting over two cores."""

import os
import signal
import tempfile

import pytest
import torch

torch.set_num_threads(1)
_KNOWN = tempfile.TemporaryDirectory(prefix="ressl-tests-")
os.environ["RESSL_CACHE"] = _KNOWN.name  # nothing of a test stays in the user's


def pytest_addoption(parser):
    help = "write the losses of this version into golden_losses.json"
    parser.addoption("--renew-golden", action="store_true", help=help)


@pytest.fixture(autouse=True)
def nothing_is_known(tmp_path_factory, monkeypatch):
    """No test profits from what another one has found out about its images."""
    monkeypatch.setenv("RESSL_CACHE", str(tmp_path_factory.mktemp("known")))


@pytest.fixture
def terminal():
    """SIGHUP means what it does in a terminal, though the tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def products_as_in_a_run():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as pretrain does, for the networks: TF32
    yield
    torch.set_float32_matmul_precision(before)


def pytest_collection_modifyitems(items):
    """Tests marked gpu are skipped, and say so, where there is none."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
