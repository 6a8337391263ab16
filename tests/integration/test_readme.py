"""Commands of README and docs/, in order, as they stand there: tiny settings, one process."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from helpers import fake_cifar, image_folder, make_voc
from omegaconf import OmegaConf
from PIL import Image

import ressl_plugin
from ressl_plugin import data
from ressl_plugin.cli.main import main

pytestmark = pytest.mark.timeout(280)

ROOT = Path(__file__).parents[2]
FILES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
# Commands that install, need a cluster or the other host: what runs them.
ELSEWHERE = {
    "source .venv/bin/activate": "scripts/venv.sh",
    "bash scripts/quickstart.sh": "scripts/quickstart.sh",
    "bash scripts/test.sh": "scripts/test.sh",
    "pip install": "scripts/venv.sh",
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


def commands(file):
    """Every indented line that is a command, continuation lines joined, comments off."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / file).read_text(), flags=re.M | re.S)
    text = re.sub(r" \\\n\s+", " ", text)
    lines = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    return [re.sub(r"\s+#.*", "", line) for line in lines if re.match(r"[\w./=]+ ", line)]


EVERY = [command for file in FILES for command in commands(file)]


def elsewhere(command):
    return next((file for start, file in ELSEWHERE.items() if command.startswith(start)), None)


def test_every_command_is_run_somewhere():
    for start, file in ELSEWHERE.items():
        assert (ROOT / file).is_file()
        assert any(c.startswith(start) for c in EVERY), f"no longer there: {start}"
    here = [c for c in EVERY if not elsewhere(c)]
    assert all(c.startswith("ressl ") for c in here) and len(here) > 40


@pytest.mark.parametrize("file", FILES)
def test_a_fence_is_no_place_for_commands(file):
    fences = re.findall(r"^```(.*)\n", (ROOT / file).read_text(), re.M)
    assert set(fences[::2]) <= {"python", "yaml"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory that has what the words of the pages stand for; a RUN, too."""
    tmp_path = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(tmp_path)
        fake_cifar(tmp_path / "datasets", monkeypatch, train=30, test=10, classes=5)
        data.make_digits(tmp_path / "datasets" / "digits")
        image_folder(tmp_path / "DIR", classes=2, per_class=6)
        for i, side in enumerate((24, 32, 40, 48)):  # nested, of mixed sizes, without labels
            folder = tmp_path / "PHOTOS" / f"{i}"
            image_folder(folder, classes=1, per_class=3, size=side, splits=("a",))
        make_voc(tmp_path / "voc")
        (tmp_path / "scripts").symlink_to(ROOT / "scripts")
        own = (ROOT / "docs" / "own-data.md").read_text()
        (tmp_path / "my.yaml").write_text(re.search(r"```yaml\n(.*?)```", own, re.S)[1])
        assert main(tiny("ressl pretrain cifar/ressl name=given")) == 0
        yield


STANDS_FOR = {
    "RUN": "runs/given",
    "RUN...": "runs/given",
    "pretrained_feature_extractor=RUN": "pretrained_feature_extractor=runs/given",
    "FILE": "runs/given/last.ckpt",
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
        small = SMALL_VIEWS if "imagenet" in command or "my.yaml" in command else []
        large = ("optimizer.batch_size=", "method_kwargs.queue_size=", "max_epochs=")
        kept = [word for word in words[2:] if not word.startswith(large)]
        place = 2 if name == "pretrain" else 3
        # a page before may have made the run that `resume=true` goes on with
        again = ["resume=true"] if command.endswith("cifar/ressl data.download=true") else []
        return [*words[:place], *TINY, *small, *kept[place - 2 :], *again]
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


MADE = {
    "docs/own-data.md": "photos/model.safetensors",
    "docs/configuration.md": "views.png",
    "docs/weights.md": "NEW/last.ckpt",
}
RUN_ALREADY = set()  # by a page before: of two pages that name a command one runs it


def pages():
    """Those with commands; on all of the digits they take minutes."""
    for file in (file for file in FILES if commands(file)):
        yield pytest.param(file, marks=[pytest.mark.slow] if "first-run" in file else [])


@pytest.mark.parametrize("file", pages())
def test_in_order_each(file, place, capsys):
    for command in commands(file):
        if elsewhere(command) or heavy(command) or command in RUN_ALREADY:
            continue
        assert main(tiny(command)) == 0, f"{command}\n{capsys.readouterr().err}"
        RUN_ALREADY.add(command)
    assert Path(MADE.get(file, ".")).exists()


@pytest.mark.slow
def test_python_as_it_stands_there(place, monkeypatch):
    """docs/python.md, its blocks in order; a shorter run than `pretrain` says."""
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 30)).save(name)
    keys = OmegaConf.to_container(OmegaConf.from_dotlist(TINY))
    train = ressl_plugin.pretrain
    shorter = lambda config, **given: train(config, **{**given, **keys})
    monkeypatch.setattr(ressl_plugin, "pretrain", shorter, raising=False)
    names = {"images": torch.zeros(2, 32, 32, 3, dtype=torch.uint8)}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S):
        exec(block, names)
    assert names["weak"].shape == (2, 3, 32, 32) and len(names["z"]) == 2


def heavy(command):
    return command.startswith(HEAVY) and "--plan" not in command


@pytest.mark.slow
@pytest.mark.parametrize("start", HEAVY)
def test_many_trainings(start, place, capsys):
    for command in (c for c in EVERY if c.startswith(start) and heavy(c)):
        words = shlex.split(command)[1:]
        if start == "ressl benchmark":
            more = ["--methods", "ressl", "simclr", "--seeds", "1"]
            given = [w for w in TINY if not w.startswith("batchnorm")]
            words = [*words, *given, "optimizer.batch_size=64", *more]
        else:
            words = [*words, *TINY, "--data", "cifar10", "--fast", "--device", "cpu"]
        assert main(words) == 0, capsys.readouterr().err
