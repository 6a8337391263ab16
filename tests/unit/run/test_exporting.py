"""An exported backbone is timm's to load, and computes the same, bit for bit."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ressl_plugin.data import evaluation_transform
from ressl_plugin.method import backbone
from ressl_plugin.run import exporting
from ressl_plugin.utils.errors import RunFault, UserError


def config(name, stem="auto", size=32, **kwargs):
    return OmegaConf.create(
        {
            "method": "ressl",
            "backbone": {"name": name, "kwargs": kwargs, "stem": stem},
            "data": {"dataset": "custom"},
            "augmentations": [{"crop_size": size, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 2]}],
            "method_kwargs": {},
        }
    )


def model(cfg):
    """A run's backbone, its statistics and affine parameters not those of a fresh one."""
    torch.manual_seed(0)
    network = backbone.build(cfg)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    run = SimpleNamespace(cfg=cfg, file="last.ckpt", backbone=network.eval)
    return exporting.Model(run)


def load(folder, **kwargs):
    """As the card says."""
    file = folder / "modeling.py"
    if file.exists():
        spec = importlib.util.spec_from_file_location("modeling", file)
        module = importlib.util.module_from_spec(spec)
        # timm looks its registered functions up there
        sys.modules["modeling"] = module
        spec.loader.exec_module(module)
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


CASES = [
    ("resnet18", "paper", 32, {}),
    ("timm:resnet18", "solo", 32, {"channels": [8, 16, 32, 64]}),
    ("resnet18", "imagenet", 64, {"zero_init_residual": True}),
    ("timm:resnet18", "paper", 32, {"channels": [8, 16, 32, 64]}),
    ("timm:resnet18.a1_in1k", "paper", 32, {"channels": [8, 16, 32, 64]}),  # a tag of weights
    ("timm:resnet10t", "auto", 64, {"channels": [8, 16, 32, 64]}),
    ("timm:mobilenetv3_small_050", "auto", 64, {}),
    ("timm:vit_tiny_patch16_224", "auto", 32, {"img_size": 32, "depth": 2}),
]


@pytest.mark.parametrize(("name", "stem", "size", "kwargs"), CASES)
def test_timm_computes_the_same_bit_for_bit(tmp_path, name, stem, size, kwargs):
    ours = model(config(name, stem, size, **kwargs))
    folder = exporting.export(ours, tmp_path / "out", "a card")
    theirs, images = load(folder), torch.randn(2, 3, size, size)
    assert (folder / "modeling.py").exists() == (stem in ("paper", "solo"))
    with torch.no_grad():
        features = ours.network(images)
        assert torch.equal(theirs(images), features)
    assert ours.config["num_features"] == features.shape[1]
    assert (folder / "README.md").read_text() == "a card"
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}
    assert set(modes.values()) == {modes["README.md"]}, "readable as any new file"
    tuned = load(folder, num_classes=5)  # with the encoder's weights
    assert tuned(images).shape == (2, 5)
    assert torch.equal(tuned.state_dict()[key := next(iter(theirs.state_dict()))],
                       theirs.state_dict()[key])  # fmt: skip


@pytest.mark.parametrize("name", exporting.TORCHVISIONS)
def test_the_weights_are_torchvisions_too(tmp_path, name):
    ours = model(config(name, "imagenet", 64))
    folder = exporting.export(ours, tmp_path / "out", "")
    theirs = torchvision.models.get_model(name, weights=None)
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images), ours.network(images))


@pytest.mark.parametrize("changes", [{}, {"interpolation": "bilinear"}, {"image_size": 48}])
@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_images_are_prepared_as_evaluators_do(size, changes):
    cfg = config("timm:resnet10t", size=size, channels=[8, 8, 8, 8])
    cfg.data.update(changes)
    how = timm.data.resolve_data_config(pretrained_cfg=model(cfg).config["pretrained_cfg"])
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    image = Image.fromarray(pixels)
    theirs = timm.data.create_transform(**how, is_training=False)(image)
    assert torch.equal(theirs, evaluation_transform(cfg)(image))


@pytest.mark.slow
def test_onnx(tmp_path, monkeypatch):
    ort = pytest.importorskip("onnxruntime", reason="pip install 'ressl_plugin[onnx]'")
    pytest.importorskip("onnxscript", reason="pip install 'ressl_plugin[onnx]'")
    ours = model(config("timm:resnet18", "paper", channels=[8, 16, 32, 64]))
    folder = exporting.export(ours, tmp_path / "out", "", onnx=True)
    session = ort.InferenceSession(folder / "model.onnx")
    for n in (1, 5):
        images = torch.randn(n, 3, 32, 32)
        (found,) = session.run(["features"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(found), ours.network(images), rtol=1e-4, atol=1e-4
            )
    content = (folder / "model.onnx").read_bytes()
    for place in (torch.__file__, exporting.__file__):
        assert place.rpartition("/")[0].encode() not in content
    monkeypatch.setattr(exporting, "ONNX_TOLERANCE", 0.0)
    with pytest.raises(RunFault, match=r"features are .* of the largest off"):
        exporting.export(ours, tmp_path / "other", "", onnx=True)
    assert not [path for path in tmp_path.iterdir() if path != folder]


def test_onnx_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting.packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--onnx needs onnx, .*pip install 'ressl_plugin\[onnx\]'"):
        exporting.export(SimpleNamespace(), tmp_path / "x", "", onnx=True)


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vit_tiny", {"img_size": 32}, "timm has no network of this name and these weights"),
        ("resnet18", {"replace_stride_with_dilation": [False, False, True]}, "does not take them"),
    ],
)
def test_what_timm_cannot_build(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        model(config(name, **kwargs))


def test_weights_that_are_another_network(monkeypatch):
    cfg = config("timm:resnet18", channels=[8, 16, 32, 64])
    network = backbone.build(cfg)
    cfg.backbone.kwargs.channels = [8, 16, 32, 65]
    run = SimpleNamespace(cfg=cfg, file="last.ckpt", backbone=network.eval)
    with pytest.raises(UserError, match=r"timm's resnet18 is another: layer4\.0\.conv1\.weight"):
        exporting.Model(run)
    network.bn1.running_var[0] = torch.inf
    with pytest.raises(UserError, match=r"last\.ckpt: bn1\.running_var is not finite"):
        exporting.Model(run)


def test_nothing_is_written_over(tmp_path, monkeypatch):
    ours = model(config("timm:resnet10t", channels=[8, 8, 8, 8]))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "README.md").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(UserError, match="holds something already; give a new folder"):
            exporting.export(ours, tmp_path / name, "")
    with pytest.raises(UserError, match="cannot be written"):
        exporting.export(ours, tmp_path / "file" / "x", "")
    monkeypatch.setattr(json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exporting.export(ours, tmp_path / "new", "")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["README.md", "file", "full"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    assert (exporting.export(ours, tmp_path / "empty", "") / "config.json").is_file()
