"""A run of every release so far goes on, is evaluated, exported and put in a table.

The runs are tests/releases/*.zip, made by make.py there: never made anew, for they are what users
have.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import timm
import torch

from ressl_plugin import data
from ressl_plugin.cli.main import main
from ressl_plugin.run import checkpoint, results

RELEASES = sorted((Path(__file__).parents[1] / "releases").glob("*.zip"))
STEPS, STOP = 24, 12


@pytest.fixture(params=RELEASES, ids=lambda path: path.stem)
def release(request, tmp_path, monkeypatch):
    """The losses of the steps after the stop; `run` and `digits` are in the working directory."""
    shutil.unpack_archive(request.param, tmp_path)
    data.make_digits(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("losses.json").read_text())


def test_there_is_one_and_it_is_small():
    assert RELEASES and all(path.stat().st_size <= 200_000 for path in RELEASES)


def test_a_run_of_an_old_release(release, monkeypatch, capsys):
    before = results.read("run")
    for words in ("knn run --k 5 --temperature 0.07", "linear run --fast"):
        assert main([*words.split(), "--device", "cpu"]) == 0, capsys.readouterr().err
    again = {(r["evaluator"], r["metric"]): r["value"] for r in results.read("run")[len(before) :]}
    for record in before:  # two images of 360: another machine's last bit
        assert again[record["evaluator"], record["metric"]] == pytest.approx(record["value"], abs=1)

    assert main(["export", "run", "backbone"]) == 0, capsys.readouterr().err
    monkeypatch.syspath_prepend("backbone")
    monkeypatch.delitem(sys.modules, "modeling", raising=False)
    if Path("backbone/modeling.py").exists():
        importlib.import_module("modeling")
    network = timm.create_model("local-dir:backbone", pretrained=True).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 16, 16)).isfinite().all()
    assert main(["table", "run"]) == 0
    assert f"{before[0]['value']:.2f}" in capsys.readouterr().out

    found, loss = [], pl.Callback()
    loss.on_train_batch_end = lambda trainer, module, out, *_: found.append(out["loss"].item())
    fit = pl.Trainer.fit

    def watched(trainer, *args, **kwargs):
        trainer.callbacks.insert(0, loss)
        return fit(trainer, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "fit", watched)
    words = ["pretrain", "run/config.yaml", "resume=true", "run_dir=run"]
    assert main(words) == 0, capsys.readouterr().err
    assert checkpoint.load("run")["global_step"] == STEPS
    assert len(found) == len(release) == STEPS - STOP
    # its own steps, until a last bit that falls otherwise has become a digit
    assert found[:3] == pytest.approx(release[:3], abs=1e-3)
