"""Quality without labels by the real command: online, as criterion of the best checkpoint."""

import logging

import numpy as np
import pytest
from commands import command
from helpers import image_folder

from ressl_plugin.cli.main import main
from ressl_plugin.evaluate.quality import BETTER
from ressl_plugin.run import checkpoint, results
from ressl_plugin.run.metrics import read_metrics

QUALITY = ["quality_eval.enabled=true", "max_epochs=3", "checkpoint.best=rankme"]


@pytest.fixture
def images(tmp_path):
    return image_folder(tmp_path / "images", classes=2, per_class=24)


def trained(images, run, capsys, *more):
    assert main(command(images, run, *QUALITY, *more)) == 0, capsys.readouterr().err
    return read_metrics(run)


def quality(run, capsys, *more):
    """What `ressl quality` prints, and its records by metric."""
    capsys.readouterr()
    small = ["--images", "12", "--views", "2", "--device", "cpu"]
    assert main(["quality", str(run), *small, *more]) == 0
    return capsys.readouterr().out, {r["metric"]: r for r in results.read(run)[-len(BETTER) :]}


def best_epoch(run):
    return checkpoint.read(run / "best.ckpt")["epoch"]


def test_of_clean_images_every_second_epoch(images, tmp_path, capsys, caplog):
    run = tmp_path / "run"
    found = trained(
        images, run, capsys, f"data.val_path={images}/val", "quality_eval.every=2", "max_epochs=4",
        "knn_eval.every=3", "knn_eval.k=2", "precision=32-true",
    )  # fmt: skip
    epochs, rank = found["val_rankme"]
    assert epochs.tolist() == [1, 3] and (rank > 1).all() and (rank <= 16).all()
    assert best_epoch(run) == epochs[np.argmax(rank)]
    assert found["val_knn_acc1"][0].tolist() == [2]
    assert (found["val_uniformity"][1] < 0).all() and "train_rankme" not in found
    assert found["train_alignment"][0].tolist() == [1, 3]
    assert (found["train_alignment"][1] < 2).all()

    assert main(["knn", str(run), "--best", "--k", "2", "--device", "cpu"]) == 0
    record = results.read(run)[-1]
    assert (record["checkpoint"], record["epochs"]) == ("best.ckpt", best_epoch(run) + 1)

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"pretrained_feature_extractor: {run}\nmax_epochs: 1\ndata: {{num_workers: 0}}\n"
        "optimizer: {name: sgd, batch_size: 8, lr: 1.0}\n"
    )
    (run / "previous" / "last.ckpt").replace(run / "best.ckpt")  # of an epoch before the last
    assert main(["linear", str(recipe), "--best", "--device", "cpu"]) == 0
    record = results.read(run)[-1]
    assert (record["checkpoint"], record["epochs"]) == ("best.ckpt", 3)
    assert "unfinished run" not in caplog.text

    table, records = quality(run, capsys)
    assert list(records) == list(BETTER) and all(name in table for name in BETTER)
    for name in ("rankme", "alpha_req", "uniformity"):
        online = found[f"val_{name}"][1][-1]
        assert records[name]["value"] == pytest.approx(online, rel=1e-3)
        assert records[name]["protocol"] == "val images, clean"
    assert 0 < records["alignment"]["value"] < 2 and records["lidar"]["value"] > 1
    assert records["lidar"]["protocol"] == "val images, 2 views of 12"
    assert quality(run, capsys)[0] == table  # the draw is the seed's


def test_of_a_run_without_clean_images(images, tmp_path, capsys, caplog):
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    found = trained(images, run, capsys, "data.no_labels=true")
    assert "quality_eval: no images to validate on" in caplog.text
    epochs, rank = found["train_rankme"]
    assert epochs.tolist() == [0, 1, 2] and (rank > 1).all()
    assert best_epoch(run) == np.argmax(rank) and "val_rankme" not in found
    _, records = quality(run, capsys, "--best")
    assert list(records["rankme"]["data_sets"]) == ["train"]
    assert records["rankme"]["checkpoint"] == "best.ckpt"
    assert main(["quality", str(run), "--views", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_no_best_is_a_users_mistake(images, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(command(images, run, "max_epochs=1")) == 0
    assert main(["knn", str(run), "--best"]) == 2
    assert "checkpoint.best=knn" in capsys.readouterr().err
