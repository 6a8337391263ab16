"""README's commands, in order, as they stand there: with tiny settings, in one process."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import fake_cifar, image_folder, make_voc

from ressl_plugin import data
from ressl_plugin.cli.main import main

pytestmark = pytest.mark.timeout(280)

README = Path(__file__).parents[2] / "README.md"
# Commands that install, need a cluster or the other host: what runs them.
ELSEWHERE = {
    "source .venv/bin/activate": "scripts/venv.sh",
    "bash scripts/quickstart.sh": "scripts/quickstart.sh",
    "bash scripts/test.sh": "scripts/test.sh",
    "python main_pretrain.py": "tests/unit/method/test_registry.py",
    "python -m ressl_plugin main_knn.py": "tests/unit/method/test_registry.py",
    "ressl pretrain imagenet/ressl devices=8": "tests/distributed/test_pretrain.py",
    "ressl data cifar10": "tests/unit/data/test_packing.py",
    "torchrun": "tests/distributed/test_pretrain.py",
    "sbatch": "tests/integration/test_slurm.py",
}
HEAVY = ("ressl benchmark", "ressl paper")  # many trainings: marked slow
TINY = [
    "backbone.name=timm:resnet18", "backbone.stem=paper",
    "backbone.kwargs={channels: [8, 8, 8, 8], zero_init_last: false}",
    "method_kwargs.proj_hidden_dim=16", "method_kwargs.proj_output_dim=8",
    "method_kwargs.queue_size=8", "optimizer.batch_size=4", "batchnorm.groups=2", "max_epochs=1",
    "scheduler.warmup_epochs=0", "data.num_workers=0", "accelerator=cpu", "devices=1",
    "precision=32-true", "knn_eval.k=2", "enable_progress_bar=false", "enable_model_summary=false",
]  # fmt: skip
SMALL_VIEWS = [f"augmentations.{i}.crop_size=16" for i in range(2)]
MINE = """
method: ressl
name: mine
backbone: {name: resnet18}
method_kwargs: {proj_hidden_dim: 64, proj_output_dim: 32, temperature_q: 0.1, temperature_k: 0.04}
data: {dataset: custom, train_path: DIR, val_path: DIR}
augmentations: [{preset: contrastive, crop_size: 16}, {preset: weak, crop_size: 16}]
optimizer: {name: sgd, batch_size: 32, lr: 0.1}
max_epochs: 2
"""


def commands():
    """Every indented line that is a command, continuation lines joined, comments off."""
    text = re.sub(r" \\\n\s+", " ", README.read_text())
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+#.*", "", line) for line in lines if re.match(r"[a-z]+ ", line)]


def elsewhere(command):
    return next((file for start, file in ELSEWHERE.items() if command.startswith(start)), None)


def test_every_command_is_run_somewhere():
    for start, file in ELSEWHERE.items():
        assert (README.parent / file).is_file()
        assert any(c.startswith(start) for c in commands()), f"README no longer has {start}"
    here = [c for c in commands() if not elsewhere(c)]
    assert all(c.startswith("ressl ") for c in here) and len(here) > 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory that has what the README's words stand for."""
    monkeypatch.chdir(tmp_path)
    fake_cifar(tmp_path / "datasets", monkeypatch, train=30, test=10, classes=5)
    data.make_digits(tmp_path / "datasets" / "digits")
    image_folder(tmp_path / "DIR", classes=2, per_class=6, splits=(".",))
    for i, side in enumerate((24, 32, 40, 48)):  # nested, of mixed sizes, without labels
        image_folder(tmp_path / "PHOTOS" / f"{i}", classes=1, per_class=3, size=side, splits=("a",))
    make_voc(tmp_path / "voc")
    (tmp_path / "scripts").symlink_to(README.parent / "scripts")
    (tmp_path / "my.yaml").write_text(MINE)


STANDS_FOR = {
    "RUN": "runs/ressl-cifar10",
    "RUN...": "runs/ressl-cifar10",
    "pretrained_feature_extractor=RUN": "pretrained_feature_extractor=runs/ressl-cifar10",
    "FILE": "runs/ressl-cifar10/last.ckpt",
    "CONFIG": "cifar/ressl",
    "OUT": "out",
    "VOCdevkit": "voc/VOCdevkit",
    "[--fast]": "--fast",
}


def tiny(command):
    """The command's words with what they stand for, and settings that make it quick."""
    words = [STANDS_FOR.get(word, word) for word in shlex.split(command)[1:]]
    name = words[0]
    if name in ("pretrain", "import"):
        # the README's own word comes last, but for sizes
        small = SMALL_VIEWS if "imagenet" in command else []
        large = ("optimizer.batch_size=", "method_kwargs.queue_size=", "max_epochs=")
        kept = [word for word in words[2:] if not word.startswith(large)]
        place = 2 if name == "pretrain" else 3
        return [*words[:place], *TINY, *small, *kept[place - 2 :]]
    more = {
        "lowshot": ["--per-class", "2", "--draws", "2", "--device", "cpu"],
        "finetune": ["--epochs", "1", "--labels", "0.5", "--device", "cpu"],
        "compare": ["--draws", "2", "--device", "cpu"],
        "knn": ["--device", "cpu"],
        "figures": ["--device", "cpu"],
        "quality": ["--images", "8", "--views", "2", "--device", "cpu"],
    }.get(name, [])
    if name == "linear" and words[1].endswith(".yaml"):
        more = ["max_epochs=1", "data.num_workers=0", "accelerator=cpu",
                "backbone.name=timm:resnet18", "devices=1"]  # fmt: skip
    if name == "finetune":
        words = words[:2]
    return [*words, *more]


def test_in_order_each(place, capsys):
    for command in commands():
        if elsewhere(command) or command.startswith(HEAVY):
            continue
        assert main(tiny(command)) == 0, f"{command}\n{capsys.readouterr().err}"
    assert Path("photos/model.safetensors").is_file() and Path("views.png").is_file()
    assert Path("NEW/last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("start", HEAVY)
def test_many_trainings(start, place, capsys):
    for command in (c for c in commands() if c.startswith(start)):
        words = shlex.split(command)[1:]
        if start == "ressl benchmark":
            more = ["--methods", "ressl", "simclr", "--seeds", "1"]
            given = [w for w in TINY if not w.startswith("batchnorm")]
            words = [*words, *given, "optimizer.batch_size=64", *more]
        else:
            words = [*words, *TINY, "--data", "cifar10", "--fast", "--device", "cpu"]
        assert main(words) == 0, capsys.readouterr().err
