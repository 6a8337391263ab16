"""`ressl export`: what the card says is so, and nothing of the machine is in the folder."""

import re
import shutil
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from helpers import image_folder
from PIL import Image
from safetensors.torch import load_file

import ressl_plugin
from ressl_plugin.cli.main import main
from ressl_plugin.data import evaluation_transform
from ressl_plugin.experiments.model_card import card
from ressl_plugin.run.directories import open_run
from ressl_plugin.run.exporting import Model
from ressl_plugin.train import exchange

HERE = "somebody-4711"  # in every path and name of this machine that a run knows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run in whose config, records and environment HERE is wherever it can be."""
    place = tmp_path_factory.mktemp(HERE)
    images = image_folder(place / "images", size=20)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("USER", "LOGNAME", "HOSTNAME"):
            patch.setenv(name, HERE)
        run = ressl_plugin.pretrain(
            "digits/ressl", name=HERE, run_dir=place / "run", max_epochs=2, accelerator="cpu",
            devices=1, enable_progress_bar=False, enable_model_summary=False,
            data={"train_path": images / "train", "val_path": images / "val"},
            optimizer={"batch_size": 8},
            **{"method_kwargs.queue_size": 16, "checkpoint.best": "knn",
               "checkpoint.dir": str(place), "wandb.entity": HERE, "wandb.project": HERE},
        )  # fmt: skip
    run.knn()
    run.linear()
    return run


def export(run, out, *more):
    assert main(["export", str(run.dir), str(out), *more]) == 0
    return out


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return export(trained, tmp_path_factory.mktemp("x") / "out", "--licence", "cc-by-4.0")


def blocks(folder, language):
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.S)


WITHOUT = ("ressl_plugin", "solo", "lightning", "omegaconf", "hydra")


def run_alone(code, folder):
    """Python code in the folder, with timm and torchvision and nothing of ours."""
    code = f"import sys; sys.modules.update(dict.fromkeys({WITHOUT})); sys.path[0] = '.'\n{code}"
    words = [sys.executable, "-c", code]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env={"PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.returncode == 0, done.stderr


def test_it_is_loaded_as_the_card_says(trained, exported, tmp_path):
    file = next((trained.dir.parent / "images" / "val").rglob("*.png"))
    (load,) = blocks(exported, "python")
    run_alone(
        f"from PIL import Image; image = Image.open({str(file)!r})\n{load}\n"
        f"import torch; torch.save((model(transform(image)[None]), features), '{tmp_path}/z')",
        exported,
    )
    again, features = torch.load(tmp_path / "z")
    image = evaluation_transform(trained.cfg)(Image.open(file).convert("RGB"))[None]
    with torch.no_grad():
        assert torch.equal(again, features) and torch.equal(features, trained.backbone()(image))


def test_what_the_card_says(trained, exported):
    text = (exported / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert head["library_name"] == "timm" and head["license"] == "cc-by-4.0"
    assert "# resnet18_3x3_pad1 by ReSSL\n" in text and "24 images,\n2 epochs" in text
    for record in ("knn: k=20 cosine T=0.07", "linear: logistic regression, cached features"):
        (line,) = [line for line in text.splitlines() if record in line]
        assert re.search(r"\| images +\| 24 +\| top1 +\| \d+\.\d\d", line)
    recipe = yaml.safe_load(blocks(exported, "yaml")[0])
    assert recipe["method_kwargs"]["queue_size"] == 16 and recipe["optimizer"]["lr"] == 0.24
    assert recipe["augmentations"][1]["role"] == "teacher" and "train_path" not in recipe["data"]
    versions = text.partition("## Versions of the export\n")[2]
    assert f"ressl_plugin {ressl_plugin.__version__}" in versions and "NeurIPS 2021" in text
    bare = card(trained, Model(trained), None)
    assert "license:" not in bare and "None was named for these weights" in bare


def test_nothing_of_the_machine_is_in_it(exported):
    places = {HERE, str(ressl_plugin.__path__[0]), sys.prefix}
    for file in exported.iterdir():
        content = file.read_bytes().decode("latin1")
        assert not [place for place in places if place in content], file.name
        if file.suffix != ".safetensors":  # the host's name may be two letters
            assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", content), file.name
    assert {file.name for file in exported.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "modeling.py"
    }  # fmt: skip


def test_the_best_has_its_own_epochs_and_results(trained, tmp_path):
    """The numbers of the last checkpoint are not those of the best."""
    best = trained.dir / "best.ckpt"
    shutil.copy(trained.dir / "previous" / "last.ckpt", best)
    out = export(trained, tmp_path / "before", "--best")
    text = (out / "README.md").read_text()
    assert "\n1 of 2 epochs, the best by knn." in text and "None yet." in text
    weights = load_file(out / "model.safetensors")
    of_best, of_last = open_run(best).backbone().state_dict(), trained.backbone().state_dict()
    assert all(torch.equal(weights[key], value) for key, value in of_best.items())
    assert not torch.equal(weights["conv1.weight"], of_last["conv1.weight"])

    ressl_plugin.open_run(trained.dir, best=True).knn()
    text = (export(trained, tmp_path / "after", "--best") / "README.md").read_text()
    assert text.count("knn: k=20 cosine T=0.07") == 1 and "logistic" not in text
    best.unlink()
    assert main(["export", str(trained.dir), str(tmp_path / "none"), "--best"]) == 2


@pytest.mark.slow
def test_a_network_of_torchvisions(trained, tmp_path):
    """Weights that nobody trained, imported: no epochs, no results, no data."""
    import torchvision

    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "net.pth")
    words = ["backbone.name=resnet18", "~backbone.kwargs", "backbone.stem=imagenet",
             f"data.train_path={trained.cfg.data.train_path}", "data.val_path=null"]  # fmt: skip
    exchange.import_run(tmp_path / "net.pth", "digits/ressl", words, tmp_path / "run")
    run = open_run(tmp_path / "run")
    out = export(run, tmp_path / "out")
    timms, torchvisions = blocks(out, "python")
    x = torch.randn(2, 3, 32, 32)
    torch.save(x, tmp_path / "x")
    timms = timms.partition("transform")[0]
    run_alone(
        f"import torch; x = torch.load('{tmp_path}/x')\n{timms}\ntheirs = model(x)\n"
        f"{torchvisions}\ntorch.save((theirs, model.eval()(x)), '{tmp_path}/z')",
        out,
    )
    with torch.no_grad():
        want = run.backbone()(x)
    assert all(torch.equal(found, want) for found in torch.load(tmp_path / "z"))
    text = (out / "README.md").read_text()
    assert "# resnet18, imported weights" in text and "is not recorded" in text
    assert "Trained by" not in text and "## Recipe" not in text and "NeurIPS" not in text
    assert "None yet." in text and "import modeling" not in text
