"""A reader that goes away (`| head`) ends neither a training nor what it was to leave."""

import io
import os
import sys

import pytest
from commands import command, run_cli
from helpers import image_folder
from ranks import on_ranks

from ressl_plugin.cli import main
from ressl_plugin.run import checkpoint
from ressl_plugin.utils import pipes


def closed(buffering=-1, opened=os.pipe):
    """A text stream as the interpreter makes it, whose reader has gone."""
    reader, writer = opened()
    os.close(reader)
    binary = os.fdopen(writer, "wb", buffering=buffering)
    return io.TextIOWrapper(binary, line_buffering=True, write_through=not buffering)


@pytest.mark.parametrize("opened", [os.pipe, os.openpty])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_what_is_written_to_a_closed_pipe_or_terminal_is_dropped(monkeypatch, buffering, opened):
    theirs = io.StringIO()
    monkeypatch.setattr(sys, "stderr", theirs)
    monkeypatch.setattr(sys, "stdout", closed(buffering, opened))
    monkeypatch.setattr(sys, "__stdout__", sys.stdout)
    pipes.outlive_readers()
    for _ in range(3):
        print("nobody reads this", flush=True)
    assert sys.stderr is theirs, "a stream that somebody has put there"


def test_a_training_outlives_its_readers(tmp_path):
    images = image_folder(tmp_path / "images", per_class=16, splits=("train",))
    folder = tmp_path / "run"
    words = command(images, folder, "-m", "seed=5,6", "max_epochs=1")

    def work():
        for name in ("stdout", "stderr"):
            stream = closed()
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        return run_cli(words)

    assert on_ranks(1, work, tmp_path / "ranks") == [0]
    assert checkpoint.load(folder / "seed=6")["global_step"] == 6


def test_a_broken_pipe_of_anything_else_is_no_success():
    def fails():
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        main.guarded(fails)
