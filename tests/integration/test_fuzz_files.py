"""YAML and JSON files with bytes changed, cut and put in: they work, or are one line about them."""

import json
from pathlib import Path

import pytest
from fuzzing import edited, edits, examples, from_a_check
from helpers import make_config
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ressl_plugin import config, run
from ressl_plugin.experiments import paper_spec
from ressl_plugin.utils.errors import UserError

SCRIPTS = config.RECIPES
STORED = OmegaConf.to_container(config.finish(make_config()))
PLANS = sorted((SCRIPTS / "ablation").glob("*.yaml")) + sorted((SCRIPTS / "paper").glob("*.yaml"))
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


def works_or_user_error(folder: Path, kind: str, todo) -> None:
    name, content, read = CLASSES[kind]
    (folder / name).write_bytes(edited(content, todo))
    try:
        read(folder / name)
    except UserError as error:
        assert from_a_check(error), f"made of a caught exception: {error}"


@examples(60)
@given(kind=st.sampled_from(sorted(CLASSES)), todo=edits)
def test_files(tmp_path_factory, kind, todo):
    works_or_user_error(tmp_path_factory.getbasetemp(), kind, todo)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("kind", CLASSES)
@examples(500)
@given(todo=edits)
def test_many_files(tmp_path_factory, kind, todo):
    works_or_user_error(tmp_path_factory.getbasetemp(), kind, todo)
