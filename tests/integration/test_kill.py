"""kill -9 in the middle of a run of the command line; benchmarks/kill.py does it many times."""

import importlib
import random
import sys
from pathlib import Path

import pytest

from ressl_plugin import data

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def kill():
    """The benchmark, under a name by which the server of its processes can import it, too."""
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("kill")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Half of the digits: 4 steps an epoch in place of 8."""
    folder = data.make_digits(tmp_path_factory.mktemp("digits"))
    for split in ("train", "val"):
        for file in sorted((folder / split).rglob("*.png"))[::2]:
            file.unlink()
    return folder


@pytest.mark.parametrize(("backend", "kind"), [("batched", "step"), ("host", "save")])
def test_killed_and_resumed_a_run_is_bit_equal(kill, images, tmp_path, backend, kind):
    reference = tmp_path / "reference"
    assert kill.wait(kill.start(kill.command(images, reference, backend), reference)) == 0
    moment = kill.draw(reference, kind, random.Random(3))
    assert kill.trial(images, tmp_path / "run", backend, moment, reference) == []


def test_a_difference_is_seen(kill, images, tmp_path):
    """What two seeds compute is not called equal."""
    assert kill.equal({"a": [1.0]}, {"a": [1.0]}) and not kill.equal({"a": [1.0]}, {"a": [1.1]})
    one, other = tmp_path / "one", tmp_path / "other"
    for run, words in ((one, ["max_epochs=1"]), (other, ["max_epochs=1", "seed=6"])):
        assert kill.wait(kill.start(kill.long_command(images, run, words), run)) == 0
    found = kill.differences(other, one)
    assert "state_dict" in found and any("loss of step 0" in text for text in found)
