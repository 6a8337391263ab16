"""Images a second, as --meter writes them."""

from types import SimpleNamespace

import torch

from ressl_plugin.train import throughput


def test_an_epoch_that_is_resumed_within_is_timed_from_there(tmp_path, monkeypatch):
    """Lightning does not start it again."""
    seconds = iter((100.0, 102.0))
    monkeypatch.setattr(throughput, "now", lambda device: next(seconds))
    meter = throughput.Meter(tmp_path, "custom")
    trainer = SimpleNamespace(world_size=1, is_last_batch=True)
    module = SimpleNamespace(device=torch.device("cpu"))
    meter.on_train_start(trainer, module)
    meter.on_train_batch_end(trainer, module, None, [torch.arange(8)], 3)
    assert meter.rates == [4.0]


def test_a_validation_within_an_epoch_is_not_counted(tmp_path, monkeypatch):
    seconds = iter((100.0, 101.0, 131.0, 132.0))
    monkeypatch.setattr(throughput, "now", lambda device: next(seconds))
    meter = throughput.Meter(tmp_path, "custom")
    trainer, module = SimpleNamespace(world_size=1), SimpleNamespace(device=torch.device("cpu"))
    meter.on_train_start(trainer, module)
    trainer.is_last_batch = False
    meter.on_train_batch_end(trainer, module, None, [torch.arange(8)], 0)
    meter.on_validation_start(trainer, module)
    meter.on_validation_end(trainer, module)
    trainer.is_last_batch = True
    meter.on_train_batch_end(trainer, module, None, [torch.arange(8)], 1)
    assert meter.rates == [8.0]
