"""A checkpoint whose bytes are sound and whose content is anything: one line, or it works."""

import copy

import pytest
import torch
from commands import command, run_cli
from fuzzing import mutated
from helpers import image_folder
from ranks import on_ranks

from ressl_plugin.run import checkpoint
from ressl_plugin.run.checkpoint_schema import check_training
from ressl_plugin.utils.errors import CheckpointError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(command, state): a run that was stopped in its second epoch, and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    images = image_folder(folder / "images", per_class=16, splits=("train",))
    words = command(images, folder / "run")

    def stop():
        raise ZeroDivisionError

    def work():
        try:
            run_cli(words, stop, 9)
        except ZeroDivisionError:
            return 0

    assert on_ranks(1, work, folder / "ranks") == [0]
    state = checkpoint.load(folder / "run")
    check_training("it", state)
    assert state["global_step"] == 8
    return words, folder / "run", state


def test_other_values_are_one_line_or_pass(trained):
    """Whatever stands in any place, the judge itself has one line for it or lets it pass."""
    refused = 0
    for number in range(500):
        where, changed = mutated(trained[2], number)
        try:
            check_training("x.ckpt", changed)
        except CheckpointError as error:
            refused += 1
            assert str(error).startswith("x.ckpt: "), where
    assert refused > 150


def means(state):
    return state["ressl_epoch"]["means"][0]["train"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("state_dict"), "state_dict is nothing"),
        (lambda s: s.update(state_dict=None), "state_dict is nothing, it must be a mapping"),
        (lambda s: s["state_dict"].update(queue=None), r"state_dict\.queue is nothing"),
        (lambda s: s.update(loops={}), r"loops\.fit_loop is nothing"),
        (lambda s: s["loops"].update(fit_loop={}), "epoch_progress is nothing"),
        (lambda s: s.update(epoch="x"), "epoch is 'x', it must be a count"),
        (lambda s: s.update(optimizer_states=[5]), "optimizer_states.0 is 5"),
        (lambda s: s["ressl_config"].update(precision="x"), "config.precision is 'x', it must be"),
        (lambda s: means(s).update(a=(torch.tensor(1.0), torch.tensor(2.0))), r"a\.1 is a Tensor"),
        (lambda s: means(s).update(a=(torch.tensor(1j), 2)), r"a\.0 is a Tensor, it must be a sum"),
    ],
)
def test_what_is_wrong_is_named(trained, change, what):
    state = copy.deepcopy(trained[2])
    change(state)
    with pytest.raises(CheckpointError, match=what):
        check_training("x.ckpt", state)
