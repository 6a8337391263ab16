"""An exported backbone loads elsewhere and computes the same, bit for bit."""

import hashlib
import json
import shutil
import sys

import pytest
import timm
import torch
import torchvision
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import nn

from ressl_plugin.method import backbone
from ressl_plugin.run import importing
from ressl_plugin.utils.errors import UserError


def config(name, stem="auto", size=32):
    return OmegaConf.create(
        {
            "method": "ressl",
            "run_dir": "/home/somebody/runs/1",
            "max_epochs": 200,
            "backbone": {"name": name, "kwargs": {}, "stem": stem},
            "data": {"dataset": "stl10", "train_path": "/home/somebody/data"},
            "augmentations": [{"crop_size": size, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}],
            "method_kwargs": {},
        }
    )


def trained(cfg):
    """A backbone with statistics and affine parameters that are not those of a fresh one."""
    torch.manual_seed(0)
    network = backbone.build(cfg)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.eval()


def state_of(network):
    own = {f"backbone.{k}": v for k, v in network.state_dict().items()}
    return {**own, "projector.0.weight": torch.ones(2, 2), "queue": torch.ones(4, 2)}


RESULT = {"evaluator": "knn", "metric": "top1", "value": 90.2}
CASES = [
    ("resnet18", "paper", None, 32),
    ("resnet18", "solo", None, 32),
    ("resnet18", "imagenet", None, 64),
    ("resnet18", "paper", "timm", 32),
    ("resnet50", "auto", None, 64),
    ("resnet50", "auto", "timm", 64),
    ("timm:mobilenetv3_small_050", "auto", None, 64),
    ("timm:efficientnet_lite0", "auto", "timm", 64),
    ("timm:vit_tiny_patch16_224", "auto", None, 224),
]


@pytest.mark.parametrize(("name", "stem", "flavour", "size"), CASES)
def test_bit_equal_features(tmp_path, name, stem, flavour, size):
    cfg = config(name, stem, size)
    network = trained(cfg)
    file = importing.export_backbone(state_of(network), cfg, tmp_path / "x", flavour, [RESULT])
    assert file == tmp_path / "x.safetensors"
    loaded = importing.load_exported(file)
    assert not loaded.training
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features, again = network(images), loaded(images)
    assert torch.equal(features, again)
    card = json.loads((tmp_path / "x.json").read_text())
    assert card["features_dim"] == features.shape[1]
    assert card["input_size"] == [3, size, size]
    assert card["mean"] == [0.1, 0.2, 0.3] and card["std"] == [1, 1, 2]
    assert card["results"] == [RESULT] and card["training"]["max_epochs"] == 200
    assert card["flavour"] == flavour or ("timm" if name.startswith("timm:") else "torchvision")
    assert "somebody" not in json.dumps(card), "nothing of the machine that trained it"


def test_torchvision_itself_loads_the_names(tmp_path):
    cfg = config("resnet50", size=64)
    network = trained(cfg)
    file = importing.export_backbone(state_of(network), cfg, tmp_path / "x.safetensors")
    theirs = torchvision.models.resnet50(weights=None)
    result = theirs.load_state_dict(load_file(file), strict=False)
    assert sorted(result.missing_keys) == ["fc.bias", "fc.weight"] and not result.unexpected_keys
    theirs.fc = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(theirs.eval()(images), network(images))


def test_timm_itself_loads_the_names(tmp_path):
    cfg = config("timm:mobilenetv3_small_050", size=64)
    network = trained(cfg)
    file = importing.export_backbone(state_of(network), cfg, tmp_path / "x")
    theirs = timm.create_model("mobilenetv3_small_050", num_classes=0)
    theirs.load_state_dict(load_file(file), strict=True)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(theirs.eval()(images), network(images))


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    cfg = config("resnet18", "paper")
    importing.export_backbone(state_of(trained(cfg)), cfg, folder / "x")
    return folder


@pytest.fixture
def exported(export, tmp_path):
    return shutil.copytree(export, tmp_path, dirs_exist_ok=True) / "x"


@pytest.mark.parametrize("suffix", ["", ".json", ".safetensors"])
def test_loading_by_any_of_its_names(exported, suffix):
    network = importing.load_exported(f"{exported}{suffix}")
    assert network.conv1.stride == (1, 1) and isinstance(network.maxpool, nn.Identity)


def rewrite(exported, **changes):
    path = exported.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"}, "not of the network"),
        ({"stem": "imagenet"}, "not of the network"),
        ({"stem": "odd"}, "stem"),
        ({"architecture": "os.system"}, "has no architecture"),
        ({"architecture": ["resnet18"]}, "has no architecture"),
        ({"flavour": "timm", "architecture": "hf-hub:someone/model"}, "has no architecture"),
        ({"flavour": "timm", "architecture": "local-dir:/tmp"}, "has no architecture"),
        ({"flavour": "host"}, "has no architecture"),
        ({"kwargs": {"weights": "IMAGENET1K_V1"}}, "not allowed"),
        ({"flavour": "timm", "kwargs": {"checkpoint_path": "/tmp/x.pth"}}, "not allowed"),
        ({"kwargs": {"no_such": 1}}, "cannot be built"),
        ({"kwargs": {"width_per_group": "x"}}, "cannot be built"),
        ({"kwargs": {"norm_layer": {}}}, "cannot be built"),
        # petabytes, if it were built before it is compared
        ({"architecture": "resnet50", "kwargs": {"width_per_group": 2**16}}, "not of the network"),
        ({"kwargs": {"layers": [10**9]}}, r"kwargs\.layers\.0: must be a number up to"),
        ({"stem": 5}, "stem"),
        ({"kwargs": [1]}, "kwargs"),
        ({"format": "else"}, "not the description"),
        ({"sha256": "0"}, "sha256"),
    ],
)
def test_a_description_that_is_wrong_or_malicious(exported, changes, message):
    rewrite(exported, **changes)
    with pytest.raises(UserError, match=message) as error:
        importing.load_exported(exported)
    assert "\n" not in str(error.value)


def test_damaged_or_absent(exported):
    file = exported.with_suffix(".safetensors")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="sha256"):
        importing.load_exported(exported)
    file.write_bytes(data[:-10])
    with pytest.raises(UserError, match="safetensors"):
        importing.load_exported(exported)
    for text in ("{", '{"a":' * 10**5):
        exported.with_suffix(".json").write_text(text)
        with pytest.raises(UserError, match="not JSON"):
            importing.load_exported(exported)
    with pytest.raises(UserError, match="No such file"):
        importing.load_exported(exported.with_name("other"))


def test_what_cannot_be_exported(tmp_path):
    cfg = config("resnet18", "paper")
    state = state_of(trained(cfg))
    with pytest.raises(UserError, match="flavour onnx: one of torchvision, timm"):
        importing.export_backbone(state, cfg, tmp_path / "x", "onnx")
    with pytest.raises(UserError, match="torchvision has no network"):
        importing.export_backbone(
            state, config("timm:vit_tiny_patch16_224"), tmp_path / "x", "torchvision"
        )
    with pytest.raises(UserError, match="another architecture"):
        importing.export_backbone(state, config("resnet50"), tmp_path / "x")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        importing.export_backbone(state, cfg, tmp_path / "file" / "x")
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("place", ["", ".", "folder", "x.safetensors"])
def test_a_folder_is_not_written_beside(tmp_path, monkeypatch, place):
    inside = tmp_path / "inside"
    (inside / "folder").mkdir(parents=True)
    (inside / "x.safetensors").mkdir()
    monkeypatch.chdir(inside)
    cfg = config("resnet18", "paper")
    with pytest.raises(UserError, match=r"a folder; name the file, such as .*backbone.safetensors"):
        importing.export_backbone({}, cfg, place)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "inside", "x.safetensors"]


def test_weights_of_a_run_that_diverged(exported, tmp_path):
    cfg = config("resnet18", "paper")
    state = state_of(trained(cfg))
    state["backbone.layer1.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight is not finite"):
        importing.export_backbone(state, cfg, tmp_path / "y")
    assert not list(tmp_path.glob("y*"))
    file = exported.with_suffix(".safetensors")
    weights = load_file(file)
    weights["bn1.running_var"][0] = torch.inf
    save_file(weights, file, {"format": "pt"})
    rewrite(exported, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"bn1\.running_var is not finite"):
        importing.load_exported(exported)


def test_loading_needs_no_solo_learn(exported, monkeypatch):
    for name in [n for n in sys.modules if n == "solo" or n.startswith("solo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "solo", None)
    assert importing.load_exported(exported)(torch.zeros(1, 3, 32, 32)).shape == (1, 512)
