"""Text files and weights that a stranger may hand us, with bytes changed, cut and put in, and JSON
with other values in its places: they work, or are one line about them."""

import json
import traceback
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from fuzzing import edited, edits, examples, from_a_check, mutated
from helpers import image_folder, make_config
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

import ressl_plugin
from ressl_plugin import config, run
from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.data.tiny_imagenet import arrange
from ressl_plugin.evaluate.finetune import labelled_rows
from ressl_plugin.evaluate.voc import VOC
from ressl_plugin.experiments import model_card, paper_spec, report, tables
from ressl_plugin.run import exporting, importing, metrics, results
from ressl_plugin.utils.errors import UserError

SCRIPTS = config.RECIPES
STORED = OmegaConf.to_container(config.finish(make_config()))
PLANS = sorted((SCRIPTS / "ablation").glob("*.yaml")) + sorted((SCRIPTS / "paper").glob("*.yaml"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with records, logs and an export beside it: what `CLASSES` takes its files from."""
    place = tmp_path_factory.mktemp("trained")
    images = image_folder(place / "images", size=20)
    made = ressl_plugin.pretrain(
        "digits/ressl", run_dir=place / "run", max_epochs=1, accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False,
        backbone={"name": "timm:resnet10t", "stem": "auto", "kwargs": {"channels": [8, 8, 16, 16]}},
        data={"train_path": images / "train", "val_path": images / "val"},
        optimizer={"batch_size": 8}, **{"method_kwargs.queue_size": 16},
    )  # fmt: skip
    made.knn()
    results.append(made.dir, {
        "evaluator": "quality", "protocol": "val", "metric": "rankme", "value": 3.0, "data": "x",
    })  # fmt: skip
    results.put_in_place(made.dir, results.read(made.dir)[0], 1, "ReSSL", "CIFAR-10")
    model_card.export_run(made.dir, place / "export")
    return place


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def read(trained, patch):
    """kind -> (a file, what reads it), each in the folder of the run."""
    folder, model = trained / "run", exporting.Model(run.open_run(trained / "run"))
    named = SimpleNamespace(targets=[0, 0, 1, 1], samples=_samples(4))
    voc, tiny = _voc(trained / "voc"), _tiny_imagenet(trained / "tiny")
    names = trained / "labels.txt"
    names.write_text("0_1.png\nc1/1_3.png\n")
    tables_of = lambda: (tables.table([folder]), tables.table([folder], "csv"), *_page(folder))
    patch.setattr(report, "pictures", lambda *_: [])
    patch.setitem(DATASETS, "tiny-imagenet", replace(DATASETS["tiny-imagenet"], images=(2, 2)))
    return {
        "results": (folder / "results.json", lambda: (*tables_of(), _card(folder, model))),
        "run's config": (folder / "config.yaml", tables_of),
        "identity of data": (folder / "data.json", lambda: (*tables_of(), _card(folder, model))),
        "log": (metrics.logged(folder)[0], lambda: metrics.read_metrics(folder)),
        "label list": (names, lambda: labelled_rows(named, names)),
        "VOC's list": (voc, lambda: VOC(trained / "voc", "trainval")),
        "Tiny ImageNet's list": (tiny, lambda: arrange(trained / "tiny")),
        "exported weights": (trained / "export/model.safetensors",
                             lambda: importing.import_checkpoint(
                                 trained / "export/model.safetensors", model.cfg)),
    }  # fmt: skip


def _samples(count: int) -> list[tuple[str, int]]:
    return [(f"/images/c{i // 2}/{i // 2}_{i}.png", i // 2) for i in range(count)]


def _voc(root: Path) -> Path:
    for folder in ("ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for name in ("000001", "000002"):
        Image.new("RGB", (4, 4)).save(root / f"JPEGImages/{name}.jpg")
    for name in ("cat", "dog"):
        (root / f"ImageSets/Main/{name}_trainval.txt").write_text("000001  1\n000002 -1\n")
    return root / "ImageSets/Main/cat_trainval.txt"


def _tiny_imagenet(root: Path) -> Path:
    for wnid in ("n01", "n02"):
        for folder in (f"train/{wnid}/images", "val/images"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(root / folder / f"{wnid}.JPEG")
    file = root / "val/val_annotations.txt"
    file.write_text("n01.JPEG\tn01\t0\t0\t3\t3\nn02.JPEG\tn02\t0\t0\t3\t3\n")
    return file


def _card(folder: Path, model) -> str:
    return model_card.card(run.open_run(folder), model, None)


def _page(folder: Path) -> tuple[dict, dict]:
    """What a report shows, its pictures left out."""
    (group,) = report.groups([folder])
    return report.comparison([group, group]), report.experiment(group, [group], (), "cpu")


def one_line_or_it_works(call) -> None:
    try:
        call()
    except UserError as error:
        assert from_a_check(error), f"made of a caught exception: {error}"


KINDS = ("results", "run's config", "identity of data", "log", "label list", "VOC's list",
         "Tiny ImageNet's list", "exported weights")  # fmt: skip


def check_bytes(read, kind: str, todo) -> None:
    """The file with some of its bytes edited."""
    file, call = read[kind]
    whole = file.read_bytes()
    try:
        file.write_bytes(edited(whole, todo))
        one_line_or_it_works(call)
    finally:
        file.write_bytes(whole)


def check_values(read, kind: str, count: int) -> None:
    """The file, JSON or YAML, with another value in one of its places, `count` times."""
    file, call = read[kind]
    whole, bad = file.read_bytes(), []
    old = json.loads(whole) if file.suffix == ".json" else yaml.safe_load(whole)
    for number in range(count):
        where, new = mutated({"it": old}, number)
        try:
            file.write_text(json.dumps(new.get("it"), default=str))  # YAML has all of JSON
            one_line_or_it_works(call)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            bad.append(f"{where}: {error!r} at {place.filename}:{place.lineno}")
        finally:
            file.write_bytes(whole)
    assert not bad, f"{len(bad)} of {count}:\n" + "\n".join(bad)


WITH_VALUES = KINDS[:3]


def test_the_files_work_as_they_are(read):
    for _, call in read.values():
        call()


@examples(80)
@given(kind=st.sampled_from(KINDS), todo=edits)
def test_files(read, kind, todo):
    check_bytes(read, kind, todo)


@pytest.mark.parametrize("kind", WITH_VALUES)
def test_values(read, kind):
    check_values(read, kind, 12)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", KINDS)
@examples(2000)
@given(todo=edits)
def test_many_files(read, kind, todo):
    check_bytes(read, kind, todo)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", WITH_VALUES)
def test_many_values(read, kind):
    check_values(read, kind, 2000)


# Recipes, plans and configs: read by themselves -----------------------------------------------

# file name, its contents, how it is read
CLASSES = {
    "pretraining": ("mine.yaml", (SCRIPTS / "pretrain/cifar/ressl.yaml").read_bytes(),
                    lambda file: config.finish(config.load(str(file)))),
    "linear": ("mine.yaml", (SCRIPTS / "linear/cifar/ressl.yaml").read_bytes(),
               lambda file: config.finish_linear(config.load(str(file), kind="linear"))),
    "plan": ("mine.yaml", PLANS[0].read_bytes(), lambda file: paper_spec.read(str(file))),
    "stored config": ("config.yaml", OmegaConf.to_yaml(OmegaConf.create(STORED)).encode(),
                      run.read_config),
    "stored arguments": ("args.json", json.dumps(STORED, indent=1).encode(), run.read_config),
}  # fmt: skip


def read_edited(folder: Path, kind: str, todo) -> None:
    name, content, reader = CLASSES[kind]
    (folder / name).write_bytes(edited(content, todo))
    one_line_or_it_works(lambda: reader(folder / name))


@examples(60)
@given(kind=st.sampled_from(sorted(CLASSES)), todo=edits)
def test_recipes(tmp_path_factory, kind, todo):
    read_edited(tmp_path_factory.getbasetemp(), kind, todo)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", CLASSES)
@examples(2000)
@given(todo=edits)
def test_many_recipes(tmp_path_factory, kind, todo):
    read_edited(tmp_path_factory.getbasetemp(), kind, todo)
