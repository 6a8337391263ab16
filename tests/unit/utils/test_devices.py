"""Which devices a config means, and what it cannot have on this machine."""

import pytest
import torch
from helpers import make_config

from ressl_plugin import config
from ressl_plugin.utils.devices import device_count, runnable
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    """So many GPUs are seen; none is used."""
    return lambda n: monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


def ready(**changes):
    return runnable(config.finish(make_config(**changes)))


@pytest.mark.parametrize(
    ("devices", "count"),
    [(2, 2), ("2", 2), ([0, 1], 2), ([3], 1), ("0,1", 2), ("5,", 1), ("auto", 4), (-1, 4)],
)
def test_numbers_of_devices(devices, count):
    assert device_count(devices, 4) == count


@pytest.mark.parametrize("devices", [0, True, None, 1.5, "", "a", "0,a", [], ["0"], [None], b"12"])
def test_what_is_no_number_of_devices(devices):
    with pytest.raises(UserError, match="a number, a list of numbers, or auto"):
        device_count(devices, 4)


@pytest.mark.parametrize("accelerator", ["cdua", "GPU", "mps", "tpu", ""])
def test_an_unknown_accelerator_does_not_train_on_the_processor(accelerator):
    with pytest.raises(UserError, match=r"accelerator=.*one of auto, cpu, gpu, cuda"):
        ready(accelerator=accelerator)


def test_auto_is_what_there_is(gpus):
    gpus(0)
    assert ready(accelerator="auto").accelerator == "cpu"
    gpus(2)
    for strategy in ("ddp", "auto", None):  # Lightning's auto broadcasts batch norm
        cfg = ready(accelerator="auto", devices=2, strategy=strategy)
        assert (cfg.accelerator, cfg.devices, cfg.strategy) == ("auto", 2, "ddp")
    assert ready(accelerator="auto", strategy="ddp").strategy == "auto"


@pytest.mark.parametrize("devices", [[99], [1], [0, 0], [-1], "99,"])
def test_gpus_on_a_machine_without_any(gpus, devices):
    gpus(0)
    for accelerator in ("cpu", "auto"):
        with pytest.raises(UserError, match="the processor has no such device"):
            ready(accelerator=accelerator, devices=devices)
    assert ready(accelerator="cpu", devices=[0]).devices == 1


def test_several_nodes_without_a_launcher_would_wait_for_ever(monkeypatch):
    with pytest.raises(UserError, match="num_nodes=2: nothing started this on several nodes"):
        ready(num_nodes=2)
    monkeypatch.setenv("MASTER_ADDR", "first")
    monkeypatch.setenv("NODE_RANK", "0")
    assert ready(num_nodes=2).num_nodes == 2


@pytest.mark.parametrize(
    ("devices", "message"),
    [(4, "has 2 GPU"), ([7], "GPUs are 0 to 1"), ("0,2", "0 to 1"), ([1, 1], "each once at most")],
)
def test_gpus_that_are_not_there(gpus, devices, message):
    gpus(2)
    with pytest.raises(UserError, match=message):
        ready(accelerator="gpu", devices=devices)
    assert ready(accelerator="gpu", devices=[1]).devices == [1]


def test_the_processor_takes_no_million_processes():
    with pytest.raises(UserError, match="at most 256"):
        ready(devices=2**31)


def test_synchronised_statistics_and_groups_exclude_each_other(gpus):
    gpus(2)
    both = {"accelerator": "gpu", "sync_batchnorm": True, "batchnorm__groups": 8}
    with pytest.raises(UserError, match=r"sync_batchnorm=true would undo batchnorm\.groups=8"):
        ready(**both, devices=2)
    ready(**both, devices=1)  # nothing to synchronise: the groups stay
    assert ready(**both, devices=2, batchnorm__mode="sync").sync_batchnorm is True


@pytest.mark.parametrize(
    ("change", "key"),
    [({"sync_batchnorm": True}, "sync_batchnorm=true"),
     ({"batchnorm__mode": "sync"}, "batchnorm.mode=sync")],
)  # fmt: skip
def test_no_synchronised_statistics_on_the_processor(change, key, caplog):
    assert ready(**change).sync_batchnorm is False
    assert f"{key}: needs GPUs" in caplog.text


def test_one_process_has_nobody_to_shuffle_with(caplog):
    ready(batchnorm__mode="shuffle")
    assert "batchnorm.mode=shuffle: one process" in caplog.text
    caplog.clear()
    ready(batchnorm__mode="group")
    assert not caplog.text
