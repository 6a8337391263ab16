"""A run that is killed anywhere and resumed is the run that was never stopped."""

from types import SimpleNamespace

import pytest
from saved_states import in_child
from toy_run import STEPS, PositionedLoader, equal, losses, plain_loader, same_run, train

from ressl_plugin.run import checkpoint
from ressl_plugin.train.checkpointing import CheckpointCallback


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Reference runs, one for each way of running; made when first asked for."""
    made = {}

    def get(loader, **kwargs):
        key = (loader.__name__, *sorted(kwargs.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("reference")
            assert in_child(train, made[key], loader, **kwargs) == 0
            assert len(losses(made[key])) == STEPS
        return made[key]

    return get


# Resume exactness -------------------------------------------------------------------------------


@pytest.mark.parametrize("kill_at", [0, 2, 4, 5, 8, 9, 10, 13, 14])
def test_killed_in_any_step(tmp_path, uninterrupted, kill_at):
    """A checkpoint after every step; the first, one within and the last step of every epoch."""
    reference = uninterrupted(PositionedLoader)
    assert in_child(train, tmp_path, PositionedLoader, kill_at=kill_at) == 9
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, reference)


def test_killed_again_and_again(tmp_path, uninterrupted):
    reference = uninterrupted(PositionedLoader)
    for kill_at in (1, 4, 5, 7, 12, 14):
        assert in_child(train, tmp_path, PositionedLoader, kill_at=kill_at) == 9
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert same_run(tmp_path, reference)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("loader", [plain_loader, PositionedLoader])
@pytest.mark.parametrize("kill_at", [6, 12])
def test_epoch_checkpoints(tmp_path, uninterrupted, loader, validate, kill_at):
    """Between epochs any loader resumes exactly, also one that knows nothing of positions."""
    settings = {"every": 0, "validate": validate}
    reference = uninterrupted(loader, **settings)
    assert in_child(train, tmp_path, loader, kill_at=kill_at, **settings) == 9
    assert in_child(train, tmp_path, loader, **settings) == 0
    assert same_run(tmp_path, reference)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 2, "max_steps": 13, "max_epochs": -1},
        {"every": 1, "val_check_interval": 0.4},
        {"every": 1, "accumulate_grad_batches": 2},
        {"every": 3, "frequency": 2},
        {"every": 1, "limit_train_batches": 3},
    ],
    ids=lambda s: "-".join(s),
)
def test_other_ways_of_running(tmp_path, settings):
    reference = tmp_path / "reference"
    reference.mkdir()
    assert in_child(train, reference, PositionedLoader, **settings) == 0
    for kill_at in (4, 8):
        run = tmp_path / str(kill_at)
        run.mkdir()
        code = in_child(train, run, PositionedLoader, kill_at=kill_at, **settings)
        assert code == 9
        assert in_child(train, run, PositionedLoader, **settings) == 0
        assert same_run(run, reference)


def test_a_resumed_run_may_go_on_longer(tmp_path):
    """A finished run resumed changes nothing."""
    assert in_child(train, tmp_path, PositionedLoader) == 0
    before = checkpoint.load(tmp_path)
    assert in_child(train, tmp_path, PositionedLoader) == 0
    assert equal(before["state_dict"], checkpoint.load(tmp_path)["state_dict"])
    assert len(losses(tmp_path)) == STEPS


@pytest.mark.parametrize("config", [{}, {"ressl_config": None}])
def test_a_checkpoint_without_a_config_is_taken_over(config):
    """A host's checkpoint holds none; null is none, too."""
    callback = CheckpointCallback.__new__(CheckpointCallback)
    state = {"ressl_rng": [{}], "optimizer_states": [], "lr_schedulers": [], **config}
    callback.on_load_checkpoint(SimpleNamespace(world_size=1), None, state)
    assert callback._loaded == ([], [])
