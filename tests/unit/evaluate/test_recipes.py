"""What the linear classifier and fine-tuning train on, and what a linear recipe may say."""

from types import SimpleNamespace

import pytest
import torch
from helpers import VIEW, image_folder, make_config
from omegaconf import OmegaConf

from ressl_plugin import config
from ressl_plugin.config import schema
from ressl_plugin.evaluate import recipes
from ressl_plugin.utils.errors import UserError

STUDENT = {**VIEW, "role": "student", "rrc": {"enabled": True, "crop_min_scale": 0.3}}


def transform(teacher):
    cfg = make_config(augmentations=[STUDENT, {**VIEW, "role": "teacher", **teacher}])
    crop, flip, *_ = recipes.training_transform(config.finish(cfg)).transforms
    return crop.scale, flip.p


def test_the_teachers_view_does_not_change_the_evaluation():
    usual = transform({})
    assert usual == ((0.3, 1.0), VIEW["horizontal_flip"]["prob"])
    assert transform({"horizontal_flip": {"prob": 0.0}}) == usual
    assert transform({"rrc": {"enabled": False}}) == usual


def linear(**changes):
    given = {"optimizer": {"name": "sgd", "batch_size": 64, "lr": 30.0}, **changes}
    return OmegaConf.merge(OmegaConf.structured(schema.LinearConfig), given)


@pytest.mark.parametrize(
    "changes, key",
    [({"mixup": 0.2}, "mixup=0.2"), ({"label_smoothing": 0.1}, "label_smoothing"),
     ({"auto_augment": True}, "auto_augment"), ({"devices": [0, 1]}, "devices="),
     ({"data": {"fraction": 0.1}}, "data.fraction=0.1")],
)  # fmt: skip
def test_what_a_recipe_cannot_have_is_refused(changes, key):
    recipes.check_settings(linear())
    with pytest.raises(UserError, match=key) as refused:
        recipes.check_settings(linear(**changes))
    assert "main_linear" not in str(refused.value), "which fails on most runs"


def test_other_images_than_a_run_was_trained_on_are_named(caplog):
    """A recipe's data set goes before the run's: an accuracy is of those images."""
    trained = config.finish(config.load("cifar/ressl", ["data.dataset=cifar100"]))
    for name, said in (("cifar10", True), ("cifar100", False)):
        caplog.clear()
        recipe = linear(backbone={"name": "resnet18"}, data={"dataset": name})
        recipes.settle(recipe, SimpleNamespace(cfg=trained.copy(), dir="runs/mine"))
        assert ("evaluated on cifar10, trained on cifar100" in caplog.text) == said


def test_images_of_one_class_are_refused(tmp_path):
    images = image_folder(tmp_path, classes=1, per_class=4)
    paths = {"train_path": f"{images}/train", "val_path": f"{images}/val"}
    cfg = config.finish(make_config(data={"dataset": "custom", **paths}))
    with pytest.raises(UserError, match="train: all images are of one class"):
        recipes.datasets(cfg)


def test_the_order_of_the_images_is_the_seeds(monkeypatch):
    images = torch.utils.data.TensorDataset(torch.arange(50))
    monkeypatch.setattr(recipes, "datasets", lambda cfg: (images, images))
    cfg = OmegaConf.create({"data": {"num_workers": 0}})
    orders = [torch.cat([x for (x,) in recipes.loaders(cfg, 8, seed)[0]]) for seed in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


@pytest.mark.parametrize(
    ("accelerator", "devices", "name"),
    [("auto", 1, "auto"), ("gpu", 1, "cuda"), ("gpu", [3], "cuda:3"), ("cpu", [0], "cpu"),
     ("auto", [0], "cuda:0" if torch.cuda.is_available() else "auto")],
)  # fmt: skip
def test_the_gpu_that_a_recipe_names_is_taken(accelerator, devices, name):
    assert recipes.device(linear(accelerator=accelerator, devices=devices)) == name


def test_a_recipe_without_an_optimizer_is_a_mistake(tmp_path):
    file = tmp_path / "linear.yaml"
    file.write_text("pretrained_feature_extractor: run\noptimizer: {name: sgd, lr: 1.0}\n")
    with pytest.raises(UserError, match=r"optimizer.batch_size must be given"):
        recipes.resolve(str(file), [])
    assert recipes.resolve(str(file), ["optimizer.batch_size=8"])[0] == "run"


def test_a_recipes_name_in_records_tells_what_was_changed(tmp_path):
    file = config.find("cifar/ressl", "linear")
    words = ["pretrained_feature_extractor=r", "seed=3", "optimizer.lr=1", "data.train_path=x"]
    for target in ("cifar/ressl", str(file)):
        assert recipes.record_name(target, []) == "recipe cifar/ressl"
        assert recipes.record_name(target, words) == "recipe cifar/ressl, optimizer.lr=1"
    other = tmp_path / "mine.yaml"
    other.write_text("")
    assert recipes.record_name(str(other), ["+optimizer.batch_size=8"]) == (
        "recipe mine, +optimizer.batch_size=8"
    )


def test_data_path_stands_for_both_splits(tmp_path):
    file = tmp_path / "linear.yaml"
    file.write_text("optimizer: {name: sgd, lr: 1.0, batch_size: 8}\n")
    found = recipes.read(str(file), ["data.path=/other"]).data
    assert (found.train_path, found.val_path) == ("/other", "/other")
