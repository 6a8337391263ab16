"""Validation images that stay on the device are those that the evaluators see."""

import copy
import csv
import multiprocessing
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from commands import command, run
from helpers import fake_cifar, image_folder
from omegaconf import OmegaConf
from PIL import Image
from ranks import on_ranks

from ressl_plugin import config
from ressl_plugin.cli.main import main
from ressl_plugin.data import evaluation_loader, evaluation_transform, mean_std
from ressl_plugin.data.memory import CleanBatches
from ressl_plugin.data.training import PretrainData
from ressl_plugin.train.pretrain import pretrain


def test_clean_batches_are_the_evaluators_images_in_order():
    cfg = OmegaConf.create({"data": {"dataset": "cifar10"}})
    array = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    targets = torch.arange(5)
    batches = list(CleanBatches(torch.from_numpy(array), targets, 2, *mean_std(cfg)))
    transform = evaluation_transform(cfg)
    expected = torch.stack([transform(Image.fromarray(image)) for image in array])
    assert [len(images) for images, _ in batches] == [2, 2, 1]
    assert len(CleanBatches(torch.from_numpy(array), targets, 2, *mean_std(cfg))) == 3
    torch.testing.assert_close(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), targets)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    return fake_cifar(tmp_path, monkeypatch, train=8, test=6)


def test_online_evaluation_keeps_its_cadence(cifar):
    """knn_eval.every=2 of three epochs: evaluated once, on the test images held on the device."""
    overrides = ["accelerator=cpu", "devices=1", "precision=32-true", "batchnorm.groups=2",
                 "optimizer.batch_size=4", "max_epochs=3", "knn_eval.every=2", "knn_eval.k=2",
                 "method_kwargs.queue_size=8", "enable_progress_bar=false", "data.num_workers=0",
                 "backbone.name=timm:resnet10t", "backbone.stem=auto",
                 "backbone.kwargs={channels: [8, 8, 16, 16]}",
                 f"data.train_path={cifar}", f"data.val_path={cifar}",
                 f"run_dir={cifar / 'run'}"]  # fmt: skip
    folder = pretrain(config.finish(config.load("cifar/ressl", [*overrides, "data.download=true"])))
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert len([row for row in rows if row.get("val_acc1")]) == 1
    assert len([row for row in rows if row.get("val_knn_acc1")]) == 1
    # as the README has it: fetched once, resumed without a word about that
    pretrain(config.finish(config.load("cifar/ressl", [*overrides, "resume=true"])))


def photographs(root, sizes):
    for i, size in enumerate(sizes):
        (root / "c").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i, 0, 0)).save(root / "c" / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def loaded():
    words = ["optimizer.batch_size=2", "data.dataset=custom", "data.val_path=null"]
    return config.load("digits/ressl", words)


@pytest.fixture
def run_data(loaded, tmp_path):
    def run_data(root, *overrides):
        cfg = copy.deepcopy(loaded)
        cfg.merge_with_dotlist([f"data.train_path={root}", *overrides])
        return PretrainData(config.finish(cfg), tmp_path / "run")

    return run_data


@pytest.mark.parametrize(
    ("sizes", "overrides", "backend"),
    [
        ([(16, 16)] * 4, [], "batched"),
        ([(20, 30)] * 4, [], "batched"),
        ([(16, 16)] * 3 + [(16, 18)], [], "host"),
        ([(16, 16)] * 3 + [(400, 300)], [], "host"),  # whatever the first one is
        ([(400, 300)] + [(16, 16)] * 3, [], "host"),
        ([(200, 200)] * 4, [], "host"),
        ([(400, 300), (16, 16)] * 2, ["data.image_size=32"], "batched"),
        ([(20, 30)] * 3 + [(30, 20)], [], "host"),
    ],
)
def test_auto_picks_what_can_draw_these_images(tmp_path, run_data, sizes, overrides, backend):
    root = photographs(tmp_path / "images", sizes)
    assert run_data(root, *overrides).backend == backend


def test_a_share_of_the_labelled_images(tmp_path, run_data):
    root = photographs(tmp_path / "images", [(16, 16)] * 10)
    for method in ("ressl", "supervised"):
        assert len(run_data(root, f"method={method}", "data.fraction=0.5").dataset) == 5


@pytest.mark.parametrize("backend", ["batched", "host"])
def test_overfitting_sees_the_same_batch_in_every_epoch(tmp_path, backend):
    labels = []

    class Seen(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            labels.append(batch[0].tolist())

    photographs(tmp_path / "images" / "train", [(16, 16)] * 8)
    _, recipe, *words = command(tmp_path / "images", tmp_path / "run", f"data.backend={backend}",
                                "data.num_workers=0", "optimizer.batch_size=2", "max_epochs=3",
                                "data.dataset=custom", "overfit_batches=1")  # fmt: skip
    pretrain(config.finish(config.load(recipe, words)), [Seen()])
    assert labels == [[0, 1]] * 3


def test_a_photograph_held_upright_counts_as_it_is_turned(tmp_path, run_data):
    root = photographs(tmp_path / "images", [(20, 30)] * 3)
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (30, 20)).save(root / "c" / "9.jpg", exif=exif)
    assert run_data(root).backend == "host"
    assert run_data(root, "data.exif=true").backend == "batched"


def test_what_is_left_out_is_said(tmp_path, run_data, caplog):
    root = photographs(tmp_path / "images", [(16, 16)] * 3)
    Image.new("P", (16, 16)).save(root / "c" / "9.gif")
    (root / "c" / "a.avif").touch()
    with caplog.at_level("INFO"):
        assert len(run_data(root).dataset) == 4
    assert "4 images; files that are no images are left out: 1 .avif" in caplog.text


def test_mixed_photographs_are_trained_on_by_default_and_quietly(tmp_path):
    """Also: no warning of Lightning's that there are no validation images."""
    root = photographs(tmp_path / "images", [(16, 16), (30, 20), (18, 18), (90, 200)])
    words = command(tmp_path, tmp_path / "run", "data.dataset=custom", f"data.train_path={root}",
                    "optimizer.batch_size=4", "max_epochs=1", "data.backend=auto",
                    "data.num_workers=0", "checkpoint.every_n_steps=0")  # fmt: skip
    code, text = run(tmp_path / "run", words)
    assert code == 0, text
    assert "host draws the views" in text and "zero" not in text


def test_workers_need_not_be_forked(tmp_path, run_data):
    """Python 3.14 starts workers from a clean server, macOS from nothing: they get the host's
    views, too, though they have not mended the host."""
    images = image_folder(tmp_path / "images")
    words = command(images, tmp_path / "run", "data.backend=host", "data.num_workers=1",
                    "max_epochs=1", "checkpoint.every_n_steps=0")  # fmt: skip

    def work():
        multiprocessing.set_start_method("spawn", force=True)
        return main(words)

    assert on_ranks(1, work, tmp_path / "ranks") == [0]
    assert (tmp_path / "run" / "last.ckpt").exists()
    # those of the validation get no view, but are sent what they need like the others
    clean = evaluation_loader(run_data(images / "train", f"data.val_path={images}/val").cfg)
    sent = pickle.dumps([clean.dataset, clean.collate_fn, clean.worker_init_fn])
    assert torch.equal(pickle.loads(sent)[0][7][0], clean.dataset[7][0])
