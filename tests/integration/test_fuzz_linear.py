"""Whatever stands in a linear recipe: it works, or it is one line about it."""

import copy
import logging
import re

import pytest
import yaml
from fuzzing import MANY, examples, from_a_check, values
from helpers import image_folder, make_config
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ressl_plugin import config
from ressl_plugin.cli.main import main
from ressl_plugin.evaluate import linear
from ressl_plugin.train import pretrain
from ressl_plugin.utils.errors import RunFault, UserError

KEYS = [k for k in config.known_keys("linear") if k != "data.download"]  # nothing is fetched here
OF_THE_OPTIMIZER = ["momentum", "nesterov", "betas", "foreach", "lr", "foo"]
KEYS += [f"optimizer.kwargs.{key}" for key in OF_THE_OPTIMIZER]
changes = st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=2)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A linear recipe on a small run."""
    folder = tmp_path_factory.mktemp("linear")
    images = image_folder(folder / "images", classes=2, per_class=4)
    data = {"train_path": f"{images}/train", "val_path": f"{images}/val"}
    cfg = make_config(
        run_dir=str(folder / "run"), max_epochs=1, backbone__name="timm:resnet18",
        backbone__kwargs={"channels": [8, 8, 8, 8], "zero_init_last": False},
        data__train_path=data["train_path"], data__val_path=data["val_path"],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    for key in ("num_classes", "num_large_crops", "num_small_crops"):
        del cfg.data[key]
    pretrain.pretrain(config.finish(cfg))
    return {
        "pretrained_feature_extractor": str(folder / "run"),
        "backbone": {"name": "timm:resnet18"},
        "data": {"dataset": "custom", "num_workers": 0, **data},
        "optimizer": {"name": "sgd", "batch_size": 8, "lr": 1.0},
        "scheduler": {"name": "none"},
        "max_epochs": 1,
        "accelerator": "cpu",
    }


def changed(recipe, mapping):
    cfg = copy.deepcopy(recipe)
    for key, value in mapping.items():
        node = cfg
        *path, last = key.split(".")
        for part in path:
            node[part] = node[part] if isinstance(node.get(part), dict) else {}
            node = node[part]
        node[last] = value
    return cfg


def is_quick(file) -> bool:
    """What would work, but for hours, or in all memory, is left out."""
    try:
        cfg = config.finish_linear(config.load(str(file), kind="linear"))
    except UserError:
        return True
    size, workers = cfg.data.image_size or 0, cfg.data.num_workers
    return cfg.max_epochs <= 2 and size <= 64 and workers == 0


def works_or_user_error(file, recipe, mapping):
    file.write_text(yaml.safe_dump(changed(recipe, mapping)))
    if not is_quick(file):
        return
    try:
        linear.evaluate(str(file), [])
    except UserError as error:
        assert from_a_check(error), f"made of a caught exception: {error}"
    except RunFault as error:
        assert len(str(error).splitlines()) == 1


@pytest.fixture
def quiet():
    """No lines of Lightning's for each of many trainings."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@examples(15)
@given(mapping=changes)
def test_recipes(tmp_path_factory, quiet, recipe, mapping):
    works_or_user_error(tmp_path_factory.getbasetemp() / "mine.yaml", recipe, mapping)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@examples(max(2000, MANY))
@given(mapping=changes)
def test_many_recipes(tmp_path_factory, quiet, recipe, mapping):
    works_or_user_error(tmp_path_factory.getbasetemp() / "mine.yaml", recipe, mapping)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("max_epochs=0", "max_epochs=0: must be a whole number >= 1"),
        ("precision=foo", "precision='foo': must be one of"),
        ("optimizer.kwargs.foo=1", "optimizer.kwargs.foo: sgd has"),
        ("optimizer.lr=-1", "optimizer.lr=-1"),
        ("optimizer.name=nosuch", "optimizer.name='nosuch': must be one of"),
        ("scheduler={name: step, lr_decay_steps: null}", "lr_decay_steps must say after which"),
        ("scheduler.name=nosuch", "scheduler.name='nosuch': must be one of"),
        ("pretrain_method=nosuch", "pretrain_method=nosuch: .* was trained with ressl"),
        ("pretrain_method=byol", "pretrain_method=byol: .* was trained with ressl"),
        ("devices=[99]", "devices=.99.: the processor has no such device"),
        ("accelerator=tpu", "accelerator='tpu': one of"),
        ("seed=-1", "seed=-1"),
        ("checkpoint=false", "checkpoint=False: a mapping is expected"),
        ("optimizer.lrr=1", "unknown key optimizer.lrr; did you mean optimizer.lr"),
        ("~optimizer.lr", "optimizer.lr must be given"),
    ],
)
def test_mistakes_are_named(tmp_path, recipe, capsys, word, message):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["linear", str(tmp_path / "mine.yaml"), word]) == 2
    assert re.search(f"ressl: error: .*{message}", capsys.readouterr().err)


def test_what_is_printed_has_the_overrides(tmp_path, recipe, capsys):
    run = recipe["pretrained_feature_extractor"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    for target in (run, str(tmp_path / "mine.yaml")):
        assert main(["linear", target, "seed=77", "data.val_path=there", "--cfg"]) == 0
        shown = OmegaConf.create(capsys.readouterr().out)
        assert (shown.seed, shown.data.val_path) == (77, "there")
    assert main(["linear", run, "optimizer.lr=3", "--cfg"]) == 2


@pytest.mark.parametrize(
    ("place", "argv"),
    [
        ("ressl_plugin.method.ressl.OnlineEvaluation", ["pretrain"]),
        ("ressl_plugin.method.ressl.ReSSL.student_forward", ["pretrain"]),
        ("ressl_plugin.views.recipe._view", ["pretrain"]),
        ("ressl_plugin.views.batched.draw", ["pretrain"]),
        ("ressl_plugin.evaluate.recipes.settle", ["linear"]),
        ("ressl_plugin.evaluate.classifier.trained", ["linear"]),
        ("ressl_plugin.evaluate.features.extract", ["knn"]),
        ("ressl_plugin.evaluate.knn.sweep", ["knn"]),
    ],
)
def test_a_bug_of_ours_is_a_traceback(tmp_path, monkeypatch, recipe, place, argv):
    def buggy(*args, **kwargs):
        return None.size

    run = recipe["pretrained_feature_extractor"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    words = {
        "pretrain": [f"{run}/config.yaml", f"run_dir={tmp_path}/again"],
        "linear": [str(tmp_path / "mine.yaml")],
        "knn": [run, "--k", "1"],
    }
    monkeypatch.setattr(place, buggy)
    with pytest.raises(AttributeError):  # out of main: the interpreter prints it and exits with 1
        main([*argv, *words[argv[0]]])
