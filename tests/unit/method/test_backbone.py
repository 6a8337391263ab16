"""Backbones from timm, through training, evaluation and export; stems; what is refused."""

import logging
import pickle

import pytest
import timm
import torch
from helpers import VIEW, image_folder, make_config
from torch import nn

from ressl_plugin import config, run
from ressl_plugin.evaluate import knn, linear
from ressl_plugin.experiments import model_card, sweep
from ressl_plugin.method import backbone
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train import (
    checkpointing as saving,
)
from ressl_plugin.train import (
    pretrain,
)
from ressl_plugin.train.settling import settle_stem
from ressl_plugin.utils.errors import UserError

SMALL_VIT = {"img_size": 16, "patch_size": 4, "depth": 2}
NETWORKS = {
    # the pooled features of a MobileNetV3 pass one more layer, which its num_features leaves out
    "mobilenetv3_small_050": ({}, 1024),
    "mobilenetv4_conv_small": ({}, 1280),
    "mobilenetv2_050": ({}, 1280),
    "test_efficientnet": ({}, 256),
    "vit_tiny_patch16_224": (SMALL_VIT, 192),
    "resnet10t": ({}, 512),
}


def named(model, kwargs):
    return {"name": f"timm:{model}", "kwargs": kwargs, "stem": "auto"}


@pytest.mark.parametrize("model", NETWORKS)
def test_features_as_they_come_out(model):
    kwargs, d = NETWORKS[model]
    network = backbone.build(make_config(backbone=named(model, kwargs)))
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 16, 16)).shape == (2, d)
    assert network.num_features == d


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_train_evaluate_export(model, tmp_path, capsys):
    kwargs, d = NETWORKS[model]
    images = image_folder(tmp_path / "images", classes=3, per_class=8)
    cfg = make_config(
        backbone=named(model, kwargs),
        data={"dataset": "custom", "train_path": str(images / "train"),
              "val_path": str(images / "val"), "num_workers": 0},
        run_dir=str(tmp_path / "run"), max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    folder = pretrain.pretrain(config.finish(cfg))
    opened = run.open_run(folder)
    trained = opened.backbone()
    assert opened.state["projector.0.weight"].shape[1] == d
    fresh = opened.backbone(trained=False).state_dict()
    assert any(not torch.equal(v, fresh[k]) for k, v in trained.state_dict().items())

    knn.evaluate(folder, [], k=[1], temperature=[0.07], device="cpu")
    linear.evaluate(str(folder), [], fast=True, device="cpu")
    assert {r["evaluator"] for r in results.read(folder)} == {"knn", "linear"}

    out = model_card.export_run(folder, tmp_path / "net")
    x = torch.randn(2, 3, 16, 16)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(x), trained(x))


@pytest.mark.parametrize("method", ["ressl", "byol"])
def test_a_method_can_be_pickled(method):
    heads = {f"{key}_dim": 8 for key in ("proj_hidden", "proj_output", "pred_hidden")}
    cfg = make_config(
        method=method, method_kwargs={**heads, "queue_size": 8},
        backbone=named("mobilenetv3_small_050", {}),
    )  # fmt: skip
    model = pretrain.make_method(cfg)
    again = pickle.loads(pickle.dumps(model))
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.eval()(x)["feats"], model.eval()(x)["feats"])


@pytest.mark.parametrize("method", ["byol", "simclr"])
def test_the_hosts_methods_on_timm(method):
    heads = {f"{key}_dim": 8 for key in ("proj_hidden", "proj_output", "pred_hidden")}
    cfg = make_config(
        method=method, method_kwargs={**heads, "temperature": 0.2},
        backbone=named("mobilenetv3_small_050", {}),
    )  # fmt: skip
    model = pretrain.make_method(cfg)
    assert model.projector[0].in_features == 1024
    out = model(torch.randn(2, 3, 16, 16))
    assert out["z"].shape == (2, 8) and out["logits"].shape == (2, 10)


def test_no_classes_are_counted_for_an_encoder(tmp_path):
    cfg = make_config(data__num_classes=None, data__train_path=str(tmp_path / "elsewhere"))
    assert backbone.build(cfg).inplanes == 512
    assert cfg.data.num_classes is None


def test_unknown_model():
    with pytest.raises(UserError, match=r"did you mean .*mobilenetv3_small_050"):
        backbone.build(make_config(backbone=named("mobilenetv3_smal_050", {})))
    with pytest.raises(UserError, match="resnet1 "):
        backbone.build(make_config(backbone={"name": "resnet1 ", "stem": "auto"}))


def test_arguments_are_at_fault_where_all_is_well_without_them():
    def network(width=8):
        return nn.Linear(width, width)

    assert backbone.with_arguments(network, {"width": 4}, "x").in_features == 4
    with pytest.raises(UserError, match=r"^x .TypeError: .*depth"):
        backbone.with_arguments(network, {"depth": 4}, "x")


def test_a_bug_of_ours_is_not_blamed_on_them(monkeypatch):
    monkeypatch.delattr(timm, "create_model")
    cfg = make_config(backbone=named("resnet10t", {"in_chans": 3}))
    with pytest.raises(AttributeError, match="create_model"):
        backbone.build(cfg)


def test_transformer_of_another_size():
    cfg = make_config(backbone=named("vit_tiny_patch16_224", {"depth": 1}))
    with pytest.raises(UserError, match=r"made for 224 pixels.*kwargs.img_size=16"):
        pretrain.make_method(cfg)
    cfg.augmentations[1].crop_size = 8
    with pytest.raises(UserError, match="dynamic_img_size=true"):
        pretrain.make_method(cfg)
    cfg.augmentations = [{"preset": "contrastive"}, {"preset": "weak"}]  # of 224 pixels
    pretrain.make_method(cfg)
    cfg.augmentations = [{**VIEW, "role": "student"}, {**VIEW, "role": "teacher", "crop_size": 8}]
    cfg.backbone.kwargs = {**SMALL_VIT, "dynamic_img_size": True}
    with torch.no_grad():
        assert pretrain.make_method(cfg).backbone(torch.randn(2, 3, 8, 8)).shape == (2, 192)


@pytest.mark.parametrize("dataset", ["custom", "cifar10"])  # for CIFAR the host changes the stem
@pytest.mark.parametrize(("stem", "side"), [("paper", 32), ("solo", 34), ("imagenet", 8)])
def test_stems(dataset, stem, side):
    cfg = make_config(backbone__stem=stem, data__dataset=dataset)
    network = backbone.build(cfg)
    stem_of = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    assert stem_of(torch.randn(1, 3, 32, 32)).shape == (1, 64, side, side)


def test_stem_of_something_else():
    cfg = make_config(backbone={"name": "timm:mobilenetv3_small_050", "stem": "paper"})
    with pytest.raises(UserError, match="only ResNets"):
        backbone.build(cfg)


def test_resnet_names_of_both_sides_differ():
    """`timm:resnet18` is timm's, whose last layer and stem the host must leave alone."""
    cfg = make_config(backbone=named("resnet18", {}))
    network = backbone.build(cfg)
    assert isinstance(network, timm.models.resnet.ResNet)
    assert network.conv1.kernel_size == (7, 7)


STEMS = [  # network, its kwargs, data set, side of the largest crop -> stem
    ("resnet18", {}, "custom", 32, "paper"),
    ("resnet18", {}, "custom", 64, "paper"),
    ("resnet18", {}, "custom", 65, "imagenet"),
    ("resnet50", {}, "cifar10", 32, "solo"),  # the host's own, whose configs say nothing
    ("timm:resnet18", {"channels": [8, 8, 16, 16]}, "cifar10", 32, "paper"),
    ("timm:resnet10t", {}, "custom", 32, "auto"),  # three convolutions
    ("timm:mobilenetv3_small_050", {}, "custom", 32, "auto"),
]


def of_crops(name, kwargs, dataset, size, **changes):
    views = [{**VIEW, "crop_size": s, "role": r} for s, r in ((size, "student"), (8, "teacher"))]
    cfg = make_config(backbone={"name": name, "kwargs": kwargs, "stem": "auto"},
                      data__dataset=dataset, augmentations=views, **changes)  # fmt: skip
    return config.finish(cfg)


@pytest.mark.parametrize(("name", "kwargs", "dataset", "size", "stem"), STEMS)
def test_auto_is_a_stem_for_the_size_of_the_crops(name, kwargs, dataset, size, stem, caplog):
    with caplog.at_level(logging.INFO):
        before = torch.get_rng_state()
        settled = settle_stem(of_crops(name, kwargs, dataset, size))
    assert settled.backbone.stem == stem
    assert torch.equal(torch.get_rng_state(), before)
    said = [r.getMessage() for r in caplog.records if "backbone.stem" in r.getMessage()]
    assert len(said) == (stem != "auto")
    assert all(f"=auto: {stem} (" in line and f"for crops of {size} pix" in line for line in said)


def test_a_run_says_its_stem_and_one_of_0_1_0_keeps_what_it_had(tmp_path):
    images = image_folder(tmp_path / "images", classes=2, per_class=4)
    cfg = of_crops(
        "timm:resnet18", {"channels": [8, 8, 16, 16]}, "custom", 16, run_dir=str(tmp_path / "run"),
        data__train_path=str(images / "train"), max_epochs=1, enable_progress_bar=False,
    )  # fmt: skip
    cfg.backbone.stem = "imagenet"  # what auto was in 0.1.0, for data that are not called CIFAR
    folder = pretrain.pretrain(cfg)
    for file in ("config.yaml", "args.json"):
        path = folder / file
        path.write_text(path.read_text().replace("imagenet", "auto"))
    saved = checkpoint.load(folder / "last.ckpt")
    saved[saving.CONFIG]["backbone"]["stem"] = "auto"
    checkpoint.save(folder / "last.ckpt", saved)

    assert run.open_run(folder).backbone().conv1.kernel_size == (7, 7)
    cfg.backbone.stem, cfg.resume = "auto", True
    sweep.same_experiment(cfg)
    pretrain.pretrain(cfg)
    assert run.open_run(folder).cfg.backbone.stem == "auto"

    cfg.run_dir, cfg.resume = str(tmp_path / "new"), False
    opened = run.open_run(pretrain.pretrain(cfg))
    assert opened.cfg.backbone.stem == "paper"
    assert opened.backbone().conv1.kernel_size == (3, 3)
    cfg.resume = True
    sweep.same_experiment(cfg)
    pretrain.pretrain(cfg)
