"""The package from Python: what it trains and finds is what the command line does."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import image_folder
from omegaconf import OmegaConf
from PIL import Image

import ressl_plugin
from ressl_plugin import data
from ressl_plugin.evaluate import features
from ressl_plugin.run import results
from ressl_plugin.utils.errors import UserError

ROOT = Path(__file__).parents[3]
SMALL = {
    "backbone": {"name": "timm:resnet10t", "stem": "auto", "kwargs": {"channels": [8, 8, 16, 16]}},
    "optimizer": {"batch_size": 8},
    "method_kwargs.queue_size": 16,
    "max_epochs": 1,
    "checkpoint": {"best": "knn"},
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), size=20)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    given = {"train_path": images / "train", "val_path": str(images / "val")}
    paths = {f"data.{key}": value for key, value in given.items()}
    return ressl_plugin.pretrain("digits/ressl", run_dir=folder, **SMALL, **paths)


def test_a_mapping_changes_what_it_names(trained):
    cfg = OmegaConf.load(trained.dir / "config.yaml")
    assert (cfg.optimizer.batch_size, cfg.optimizer.lr) == (8, 0.24)  # the recipe's rate
    assert (cfg.method_kwargs.queue_size, cfg.backbone.kwargs.channels[3]) == (16, 16)
    assert trained.epochs == 1 and isinstance(trained, ressl_plugin.Run)


def test_a_config_as_a_mapping(trained, images, tmp_path):
    keys = OmegaConf.to_container(OmegaConf.load(trained.dir / "config.yaml"))
    again = ressl_plugin.pretrain(keys, run_dir=tmp_path / "again")
    first = ressl_plugin.open_run(trained.dir)
    assert all(torch.equal(first.state[key], value) for key, value in again.state.items())
    for word in ({"data": {"val_path": "other"}}, {"data.val_path": "other"}):
        with pytest.raises(UserError, match=r"data\.path=one and data\.val_path: "):
            ressl_plugin.pretrain({**keys, "data": {**keys["data"], "path": "one"}}, **word)
    with pytest.raises(UserError, match="max_epoch"):
        ressl_plugin.pretrain(keys, run_dir=tmp_path / "x", max_epoch=3)


def test_what_evaluators_find(trained):
    found = [trained.knn(k=3, temperature=0.1), trained.linear()]
    records = results.read(trained.dir)
    assert [r["value"] for r in records] == [f[m] for f in found for m in ("top1", "top5")]
    assert [r["protocol"] for r in records[::2]] == [
        "k=3 cosine T=0.1", "logistic regression, cached features",
    ]  # fmt: skip
    assert ressl_plugin.open_run(trained.dir / "last.ckpt").knn(3, 0.1) == found[0]


def test_the_best_checkpoint(trained, tmp_path):
    run = ressl_plugin.open_run(trained.dir, best=True)
    run.knn()
    assert results.read(run.dir)[-1]["checkpoint"] == "best.ckpt"
    with pytest.raises(UserError, match=r"no .*best\.ckpt; .*checkpoint\.best=knn"):
        ressl_plugin.open_run(tmp_path, best=True)


def test_features_are_those_of_the_evaluators(trained, images):
    loader = data.evaluation_loader(trained.cfg, "val")
    want, _ = features.extract(trained.backbone(), loader, progress=False)
    files = [path for path, _ in loader.dataset.samples]
    opened = [Image.open(file) for file in files]
    arrays = np.stack([np.asarray(image) for image in opened])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    for given in (files, opened, arrays, tensors):
        assert torch.equal(trained.features(given), want)
    apart = Image.fromarray(arrays[0]).resize((50, 30))
    assert trained.features([apart, opened[0]]).shape == (2, want.shape[1])


def test_images_that_it_cannot_take(trained, tmp_path):
    (tmp_path / "x.png").write_text("no image")
    for given, message in (
        ([tmp_path / "x.png"], "or no image"),
        (torch.rand(2, 3, 8, 8), r"images\[0\]: uint8 expected"),
        (np.zeros((1, 2, 3, 4, 5), np.uint8), r"images\[0\]"),
        ([], "no images"),
        ("x.png", "a sequence of images is expected"),
        ([None], r"images\[0\]: uint8 expected, got NoneType"),
    ):
        with pytest.raises(UserError, match=message):
            trained.features(given)


def test_a_run_without_checkpoints_cannot_be_returned():
    with pytest.raises(UserError, match=r"checkpoint\.enabled=false leaves no run"):
        ressl_plugin.pretrain("digits/ressl", checkpoint={"enabled": False})


def test_every_name_of_the_top_is_there():
    assert set(ressl_plugin.__all__) == {
        *(name for names in ressl_plugin._WHERE.values() for name in names), "__version__",
    }  # fmt: skip
    for name in ressl_plugin.__all__:
        assert getattr(ressl_plugin, name) is not None
    assert (Path(ressl_plugin.__file__).parent / "py.typed").is_file()


USED = """
import torch
from ressl_plugin import FeatureQueue, RelationalLoss, Views, open_run, pretrain

queue = FeatureQueue(64, 8)
loss, entropy = RelationalLoss(0.1, 0.04)(torch.ones(4, 8), torch.ones(4, 8), queue.rows)
loss.backward()
(contrastive,), weak = Views([{"preset": "contrastive"}, {"preset": "weak"}])(torch.ones(4))
run = pretrain("digits/ressl", max_epochs=1)
top1: float = open_run("runs/mine").knn(k=5)["top1"] + run.linear()["top1"]
z: torch.Tensor = run.features(["a.jpg"])
queue.enqueue([1.0])  # wrong
FeatureQueue("64", 8)  # wrong
RelationalLoss(tau=0.1)  # wrong
weak.no_such_method()  # wrong
run.knn(k="5")  # wrong
top5: str = run.linear()["top5"]  # wrong
"""


@pytest.mark.slow  # mypy reads all of torch: 40 s
def test_types_are_there_and_right(tmp_path):
    (tmp_path / "used.py").write_text(USED)
    files = re.findall(r'"(ressl_plugin/.*?\.py)"', (ROOT / "pyproject.toml").read_text())
    words = [sys.executable, "-m", "mypy", f"--cache-dir={tmp_path}", *files]
    done = subprocess.run(
        [*words, str(tmp_path / "used.py")], cwd=ROOT, capture_output=True, text=True
    )
    errors = re.findall(r"^(.*):(\d+): error", done.stdout, re.M)
    wrong = [i for i, line in enumerate(USED.splitlines(), 1) if line.endswith("# wrong")]
    assert errors == [(str(tmp_path / "used.py"), str(i)) for i in wrong], done.stdout + done.stderr
