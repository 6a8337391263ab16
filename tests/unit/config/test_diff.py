"""What another number of processes may share, and what is told of a machine."""

import pytest
from helpers import make_config

from ressl_plugin.config.diff import config_differences, without_places


def spread(devices, batch, groups, **more):
    return make_config(
        devices=devices, optimizer__batch_size=batch, batchnorm__groups=groups,
        strategy="ddp" if devices != 1 else "auto", **more,
    )  # fmt: skip


def test_the_same_batch_and_groups_on_another_number_of_processes():
    one = spread(1, 16, 4)
    assert config_differences(one, spread(2, 8, 2)) == []
    assert config_differences(one, spread([0, 3], 4, 1, num_nodes=2)) == []
    assert config_differences(spread(1, 8, 2), spread(2, 4, 0)) == []
    two = spread(2, 8, 2, batchnorm__permute=True)
    auto = two.copy()
    auto.strategy = "auto"  # what it is of several processes
    assert config_differences(auto, two) == []


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (spread(2, 16, 2), "devices"), (spread(2, 8, 4), "devices"),
        (spread(2, 8, 0), "batchnorm.groups"), (spread(2, 8, 2, seed=2), "seed"),
        (spread(2, 8, 2, batchnorm__permute=True), "batchnorm.permute"),
    ],
)  # fmt: skip
def test_another_batch_or_other_groups(other, key):
    found = config_differences(spread(1, 16, 4), other)
    assert key in {text.partition(":")[0] for text in found}


@pytest.mark.parametrize("how", [{"batchnorm__permute": True}, {"batchnorm__mode": "shuffle"}])
def test_images_that_change_places_within_a_process(how):
    assert config_differences(spread(1, 16, 4, **how), spread(2, 8, 2, **how))


def test_without_places():
    cfg = make_config(
        data__train_path="/a", data__val_path="/b", run_dir="/c", wandb={"entity": "me"}
    )
    plain = without_places(cfg)
    assert "/" not in str(plain) and "me" not in plain.get("wandb", {})
    assert plain["optimizer"] == make_config().optimizer and cfg.run_dir == "/c"


def test_which_devices_they_are_is_no_difference():
    """A recipe has a list, for the host's scripts; `devices=8` and sbatch say how many."""
    both = [spread(devices, 32, 0, batchnorm__mode="shuffle") for devices in (2, [0, 1])]
    assert config_differences(*both) == []
    other = spread([0, 1, 2], 32, 0, batchnorm__mode="shuffle")
    assert config_differences(both[0], other) == ["devices: 2 -> 3"]
