"""Statistics and interpolation of a run are one: for views of every back end, and evaluators."""

import numpy as np
import pytest
import torch
from helpers import VIEW, image_folder, make_config
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin import config, data
from ressl_plugin.data.images import fit
from ressl_plugin.data.training import HostViews
from ressl_plugin.evaluate import recipes, subject
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.errors import UserError

MODES = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
PAPERS = {  # the authors' small-data code
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "stl10": ((0.4408, 0.4279, 0.3867), (0.2682, 0.2610, 0.2686)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
SOLOS = {  # what solo-learn's main branch has, and 0.1.0 had
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    "custom": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def finished(root=None, views=None, **settings):
    plain = {"rrc": {"enabled": False}, "horizontal_flip": {"prob": 0.0}}
    pair = [{**VIEW, **plain, "role": role} for role in ("student", "teacher")]
    folders = {"train_path": f"{root}/train", "val_path": f"{root}/val"} if root else {}
    cfg = make_config(augmentations=views or pair)
    cfg.data.update({**folders, **settings})
    return config.finish(cfg)


@pytest.mark.parametrize(
    ("key", "table"), [("paper", PAPERS), ("solo", SOLOS), (None, SOLOS)], ids=str
)
def test_statistics_by_name(key, table):
    for name, wanted in table.items():
        cfg = finished(dataset=name, **({"statistics": key} if key else {}))
        assert data.mean_std(cfg) == wanted
        crops = data.view_recipe(cfg).crops
        assert {(crop.mean, crop.std) for crop in crops} == {wanted}


def test_what_an_entry_says_wins():
    own = {"mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "bicubic"}
    views = [{**VIEW, **own, "role": "student"}, {**VIEW, "role": "teacher"}]
    cfg = finished(views=views, dataset="cifar10", statistics="paper", interpolation="bilinear")
    student, teacher = data.view_recipe(cfg).crops
    assert student.mean == teacher.mean == data.mean_std(cfg)[0] == (0.1,) * 3
    assert (student.interpolation, teacher.interpolation) == ("bicubic", "bilinear")


PRESETS = [{"preset": "contrastive"}, {"preset": "weak"}]


@pytest.mark.parametrize(
    ("views", "side"),
    [
        (PRESETS, 224),  # theirs, not the data set's usual 96
        ([*PRESETS, {"preset": "contrastive", "crop_size": 96, "num_crops": 2}], 224),
        ([{**VIEW, "crop_size": 300, "num_crops": 0}, {**VIEW, "num_crops": 2}], 16),
    ],
)
def test_evaluation_is_at_the_size_of_the_largest_view_drawn(views, side):
    assert data.crop_size(finished(views=views, dataset="stl10")) == side


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (["contrastive", "weak"], r"augmentations\[0\] = 'contrastive' must be a mapping"),
        ([{**PRESETS[0], "mean": 0.5}, PRESETS[1]], r"augmentations\[0\]\.mean"),
        ([{**VIEW, "num_crops": 0}], "no teacher view"),
    ],
)
def test_a_view_that_is_none_is_named(views, message):
    with pytest.raises(UserError, match=message):
        data.view_recipe(finished(views=views))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), classes=2, per_class=2, size=24)


def resized(path, side, mode, cfg):
    """By Pillow alone, normalised."""
    image = Image.open(path).convert("RGB").resize((side, side), MODES[mode])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in data.mean_std(cfg))
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std


def drawn_host(cfg, dataset):
    draw = HostViews(cfg)
    return [draw(dataset[i][0])[0] for i in range(len(dataset))]


def drawn_batched(cfg, dataset):
    from ressl_plugin.views import batched

    images = data.MemoryImages(dataset).images
    return batched.draw(images, data.view_recipe(cfg))[0]


def drawn_dali(cfg, dataset):
    pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")
    from ressl_plugin.data import dali

    return dali.few(cfg, data.view_recipe(cfg), dataset, range(len(dataset)))[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fitted", [None, 16], ids=["view", "image_size"])
@pytest.mark.parametrize("draw", [drawn_host, drawn_batched, drawn_dali])
def test_every_back_end_resizes_as_the_run_says(draw, fitted, mode, folder):
    """Nothing random in these views: 24 pixels to 16, in the view or before it."""
    cfg = finished(folder, interpolation=mode, image_size=fitted)
    cfg.dali.device = "cpu"
    dataset = data.build_dataset(cfg, "pretrain")
    views = draw(cfg, dataset)
    for view, (path, _) in zip(views, dataset.samples):
        wanted = resized(path, 16, mode, cfg)
        assert (view - wanted).abs().mean() * 255 * 0.225 < 0.6
        other = resized(path, 16, next(m for m in MODES if m != mode), cfg)
        assert (view - other).abs().mean() * 255 * 0.225 > 2


@pytest.mark.parametrize("mode", MODES)
def test_images_are_fitted_as_the_run_says(mode, folder):
    """data.image_size: on their way to every evaluator, and in memory."""
    cfg = finished(folder, interpolation=mode, image_size=16, statistics="paper")
    loader = data.evaluation_loader(cfg, "val")
    images = torch.cat([batch for batch, _ in loader])
    for image, (path, _) in zip(images, loader.dataset.samples):
        torch.testing.assert_close(image, resized(path, 16, mode, cfg))
    dataset = data.build_dataset(cfg, "pretrain")
    first = data.MemoryImages(dataset).images[0].numpy()
    wanted = fit(data.load_image(dataset.samples[0][0]), 16, mode)
    assert (first == np.asarray(wanted)).all()
    assert (first == np.asarray(data.build_dataset(cfg, "pretrain")[0][0])).all()


@pytest.mark.parametrize(
    ("settings", "mode", "area"),
    [
        ({}, InterpolationMode.BICUBIC, (0.3, 1.0)),  # as in 0.1.0: the student's view
        ({"interpolation": "bilinear"}, InterpolationMode.BILINEAR, (0.3, 1.0)),
        ({"linear_area": [0.08, 1]}, InterpolationMode.BICUBIC, (0.08, 1)),
        ({"image_size": 160}, InterpolationMode.BICUBIC, (0.08, 1.0)),
    ],
)
def test_what_a_linear_classifier_is_trained_on(settings, mode, area):
    student = {**VIEW, "role": "student", "rrc": {"enabled": True, "crop_min_scale": 0.3}}
    cfg = finished(views=[student, {**VIEW, "role": "teacher"}], dataset="cifar10",
                   **{"statistics": "paper", **settings})  # fmt: skip
    steps = recipes.training_transform(cfg).transforms
    assert (steps[0].interpolation, tuple(steps[0].scale)) == (mode, area)
    assert (steps[-1].mean, steps[-1].std) == PAPERS["cifar10"]
    assert isinstance(steps[-1], transforms.Normalize)


def test_evaluators_refuse_a_share_that_they_would_not_take(folder, monkeypatch):
    cfg = finished(dataset="cifar10", fraction=0.5)
    monkeypatch.setattr(subject, "open_run", lambda path: Run(folder, cfg.copy(), folder))
    monkeypatch.setattr(Run, "epochs", None)
    assert subject.with_overrides("run", []).cfg.data.fraction == 0.5  # it was trained on half
    with pytest.raises(UserError, match=r"data\.fraction=0\.01: evaluators use all images"):
        subject.with_overrides("run", ["data.fraction=0.01"])
    with pytest.raises(UserError, match=r"data\.val_path=: no value; null where none is meant"):
        subject.with_overrides("run", ["data.val_path="])


def test_an_evaluation_on_other_data_keeps_the_runs_statistics(folder, monkeypatch):
    """ressl knn RUN data.dataset=custom ...: the network is shown what it was trained on."""
    trained = finished(dataset="cifar10", statistics="paper")
    monkeypatch.setattr(subject, "open_run", lambda path: Run(folder, trained.copy(), folder))
    monkeypatch.setattr(Run, "epochs", None)
    words = ["data.dataset=custom", f"data.train_path={folder}/train"]
    for more, wanted in (([], PAPERS), (["data.statistics=solo"], SOLOS)):
        cfg = subject.with_overrides("run", [*words, *more]).cfg
        assert data.mean_std(cfg) == wanted["cifar10"] and cfg.data.dataset == "custom"


@pytest.mark.parametrize("area", [[0.08], [0, 1], [0.5, 0.1], [0.1, 1.5]])
def test_areas_that_cannot_be(area):
    with pytest.raises(UserError, match=r"data\.linear_area=\[.*: .*null, or \[least, most\]"):
        finished(linear_area=area)
    recipe = config.load("cifar/ressl", [f"data.linear_area={area}"], "linear")
    with pytest.raises(UserError, match=r"data\.linear_area=\[.*: .*null, or \[least, most\]"):
        config.finish_linear(recipe)
