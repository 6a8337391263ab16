"""CONTRIBUTING.md's examples, as they stand there: an evaluator, a data set, a view recipe."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import command
from helpers import image_folder

from ressl_plugin import evaluate
from ressl_plugin.cli.main import main
from ressl_plugin.data import catalogue
from ressl_plugin.run import results
from ressl_plugin.views import presets

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def example(heading):
    """(the code, the words of the command) of a section."""
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    (line,) = re.findall(r"^    ressl (.*)$", section, re.M)
    return code, shlex.split(line)


def row(heading, module):
    """The example as an entry of a table of the module."""
    return eval("{" + example(heading)[0] + "}", vars(module))


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images")


def test_the_examples(images, tmp_path, monkeypatch, capsys):
    ((name, entry),) = row("A data set", catalogue).items()
    monkeypatch.setitem(catalogue.DATASETS, name, entry)
    ((preset, views),) = row("A view recipe", presets).items()
    monkeypatch.setitem(presets.PRESETS, preset, views)
    code, evaluation = example("An evaluator")
    (tmp_path / "centroids.py").write_text(code)
    monkeypatch.setattr(evaluate, "__path__", [*evaluate.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ressl_plugin.evaluate.centroids", raising=False)

    places = {"data.train_path=DIR/train": f"data.train_path={images}/train",
              "data.val_path=DIR/val": f"data.val_path={images}/val"}  # fmt: skip
    data_words = [places.get(word, word) for word in example("A data set")[1][2:]]
    view_words = [word.replace("64", "16") for word in example("A view recipe")[1][2:]]
    run = tmp_path / "run"
    words = command(images, run, "max_epochs=1", *data_words, *view_words)
    assert main(words) == 0, capsys.readouterr().err
    picture = [*view_words, *data_words, "--images", "2", "--out", str(tmp_path / "views.png")]
    assert main(["views", "digits/ressl", *picture]) == 0, capsys.readouterr().err
    assert main([str(run) if word == "RUN" else word for word in evaluation]) == 0
    record = results.read(run)[-1]
    assert (record["evaluator"], record["protocol"], record["data"]) == ("centroids", "L1", name)
    assert record["value"] > 50 and f"top-1 {record['value']:.2f}" in capsys.readouterr().out

    missing = [f"data.train_path={tmp_path}/nowhere", *data_words[:1]]
    assert main(["pretrain", "digits/ressl", *missing, f"run_dir={tmp_path}/x"]) == 2
    assert entry.hint in capsys.readouterr().err


def test_ressl_lists_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "centroids.py").write_text(example("An evaluator")[0])
    monkeypatch.setattr(evaluate, "__path__", [*evaluate.__path__, str(tmp_path)])
    with pytest.raises(SystemExit):
        main(["centroids", "--help"])
    assert "norm of the distance (default: 2.0)" in " ".join(capsys.readouterr().out.split())
