"""`ressl import` makes a run that evaluators open."""

import json
import logging
import shutil
import sys

import pytest
import torch
import torchvision
from helpers import image_folder
from omegaconf import OmegaConf
from ranks import on_ranks
from torch import nn

from ressl_plugin import run
from ressl_plugin.cli.main import main
from ressl_plugin.evaluate import knn
from ressl_plugin.run import checkpoint, results
from ressl_plugin.train import exchange
from ressl_plugin.utils.errors import UserError


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"), classes=3, per_class=8)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(3)
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network.eval()


@pytest.fixture(scope="module")
def imported(images, network, tmp_path_factory):
    """MoCo's checkpoint as a run, through the command line."""
    folder = tmp_path_factory.mktemp("import")
    state = {
        **under("module.encoder_q.", network.state_dict()),
        **under("module.encoder_k.", network.state_dict()),
    }
    torch.save({"epoch": 200, "state_dict": state}, folder / "moco.pth")
    words = [
        "import", str(folder / "moco.pth"), "digits/ressl", "backbone.stem=imagenet",
        "backbone.name=resnet18", "~backbone.kwargs",
        f"data.train_path={images}/train", f"data.val_path={images}/val",
        "--out", str(folder / "run"),
    ]  # fmt: skip
    assert main(words) == 2, "MoCo's weights are not ReSSL's"
    assert main([*words, "method=mocov2plus"]) == 0
    return folder / "run"


def test_evaluators_open_it(imported, network, capsys):
    opened = run.open_run(imported)
    assert opened.cfg.backbone.stem == "imagenet"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(opened.backbone()(x), network(x))
    knn.evaluate(imported, [], k=[1], temperature=[0.07], device="cpu")
    assert "top-1" in capsys.readouterr().out
    assert results.read(imported)[0]["evaluator"] == "knn"


def test_what_the_host_reads(imported):
    args = json.loads((imported / "args.json").read_text())
    cfg = OmegaConf.load(imported / "config.yaml")
    assert args["backbone"]["name"] == "resnet18"
    assert args["data"]["num_large_crops"] == 2
    assert args["optimizer"]["lr"] == pytest.approx(cfg.optimizer.lr * 32 / 256)
    state = checkpoint.load(imported)
    assert state["imported"]["origin"] == "MoCo"
    assert {k.partition(".")[0] for k in state["state_dict"]} == {"backbone", "momentum_backbone"}


def test_torchvisions_own_weights(images, tmp_path):
    """A plain state dict is a backbone, whichever method is said to have trained it."""
    torch.manual_seed(4)
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    words = [
        "import", str(tmp_path / "resnet18.pth"), "digits/ressl", "backbone.stem=imagenet",
        "backbone.name=resnet18", "~backbone.kwargs",
        f"data.train_path={images}/train", f"data.val_path={images}/val",
        "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(words) == 0
    x = torch.randn(2, 3, 32, 32)
    network.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(run.open_run(tmp_path / "run").backbone()(x), network.eval()(x))


def test_not_over_a_run(imported):
    with pytest.raises(UserError, match=r"holds last\.ckpt of another run"):
        exchange.import_run("any.pth", "digits/ressl", [], imported)


def test_a_config_that_names_a_file_of_weights(imported, tmp_path, capsys):
    """timm would unpickle it while it builds the network."""
    foreign = shutil.copytree(imported, tmp_path / "foreign")
    cfg = OmegaConf.load(foreign / "config.yaml")
    cfg.backbone = {"name": "timm:test_efficientnet", "kwargs": {"checkpoint_path": "evil.pth"}}
    OmegaConf.save(cfg, foreign / "config.yaml")
    for words in (["export", foreign, tmp_path / "x"], ["knn", foreign, "--k", 1]):
        assert main([*map(str, words)]) == 2
        assert "backbone.kwargs: checkpoint_path: not to be given" in capsys.readouterr().err
    assert not list(tmp_path.glob("x*"))


def test_without_solo_learn_a_line_says_how_it_is_installed(imported, tmp_path):
    """Of a package that is imported anew, and whose host is not there."""

    def work():
        sys.stderr = (tmp_path / "err.txt").open("w")
        logging.getLogger().handlers.clear()
        for name in [*sys.modules]:
            if name.partition(".")[0] in ("solo", "ressl_plugin"):
                del sys.modules[name]
        sys.modules["solo"] = None
        from ressl_plugin.cli.main import main as anew

        assert anew is not main
        try:
            return anew(["export", str(imported), str(tmp_path / "x")])
        finally:
            sys.stderr.flush()

    assert on_ranks(1, work, tmp_path / "ranks") == [2]
    said = (tmp_path / "err.txt").read_text()
    assert "pip install --no-deps solo-learn==1.0.2" in said.splitlines()[-1]
    assert "Traceback" not in said
