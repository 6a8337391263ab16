"""kill -9 in the middle of a run of the command line; benchmarks/kill.py does it many times."""

import importlib.util
import random
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "kill.py"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def kill():
    spec = importlib.util.spec_from_file_location("kill_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("backend", "kind"), [("batched", "step"), ("host", "save")])
def test_killed_and_resumed_a_run_is_bit_equal(kill, tmp_path, backend, kind):
    images, reference = kill.prepare(tmp_path), tmp_path / "reference"
    assert kill.wait(kill.start(images, reference, backend)) == 0
    moment = kill.draw(reference, kind, random.Random(3))
    assert kill.trial(images, tmp_path / "run", backend, moment, reference) == []


def test_a_difference_is_seen(kill, tmp_path):
    """What two seeds compute is not called equal."""
    assert kill.equal({"a": [1.0]}, {"a": [1.0]}) and not kill.equal({"a": [1.0]}, {"a": [1.1]})
    images, one, other = kill.prepare(tmp_path), tmp_path / "one", tmp_path / "other"
    plain = kill.command
    kill.command = lambda *words: [*plain(*words), "max_epochs=1"]
    assert kill.wait(kill.start(images, one, "batched")) == 0
    kill.command = lambda *words: [*plain(*words), "max_epochs=1", "seed=6"]
    assert kill.wait(kill.start(images, other, "batched")) == 0
    kill.command = plain
    found = kill.differences(other, one)
    assert "state_dict" in found and any("loss of step 0" in text for text in found)
