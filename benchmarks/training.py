"""Training steps of a method under Lightning's Trainer, timed; shared by the benchmarks."""

from __future__ import annotations

from functools import partial

import common  # isort: skip  (first: it puts the package and the examples on the path)
import algorithm1
import lightning.pytorch as pl
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn

from ressl_plugin import config, data, host
from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.method import registry
from ressl_plugin.train import pretrain
from ressl_plugin.train.host_config import host_config
from ressl_plugin.utils import devices
from ressl_plugin.views import batched, recipe


def settings(target: str = "cifar/ressl", overrides: list[str] = ()):
    """A recipe as the methods take it: presets resolved, views counted, learning rate scaled."""
    cfg = config.finish(config.load(target, list(overrides)))
    views, classes = recipe.read(cfg.augmentations), cfg.data.num_classes or 10
    return host_config(devices.runnable(cfg), views, classes)


def ours(cfg, **changes) -> pl.LightningModule:
    """The plugin's ReSSL; `changes` are dotted keys of the config with __ for dots."""
    registry.register()
    return pretrain.build(changed(cfg, changes))


def hosts(cfg, **changes) -> pl.LightningModule:
    """The host's own ReSSL on the same settings, as its main_pretrain.py makes it.

    What it does not know (stem, batch norm in groups, fused SGD) it does not get.
    """
    cfg = changed(cfg, changes)
    cfg.optimizer.kwargs = {"momentum": 0.9}
    registry.register()
    cfg.method = "ressl_host"
    model = host.build_method(cfg)
    if host.GENERATION == "main" and not cfg.performance.disable_channel_last:
        model = model.to(memory_format=torch.channels_last)
    return model


class Plain(algorithm1.ReSSL):
    """Algorithm 1 in plain PyTorch on torchvision's ResNet-18 with the paper's stem."""

    def __init__(self, cfg):
        kwargs = cfg.method_kwargs
        student = torchvision.models.resnet18(num_classes=kwargs.proj_hidden_dim)
        student.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        student.maxpool = nn.Identity()
        head = nn.Sequential(nn.ReLU(), nn.Linear(kwargs.proj_hidden_dim, kwargs.proj_output_dim))
        student = nn.Sequential(student, head)
        sgd = torch.optim.SGD(student.parameters(), 0.01, 0.9, weight_decay=5e-4)
        taus = kwargs.temperature_q, kwargs.temperature_k
        size = kwargs.proj_output_dim, kwargs.queue_size
        super().__init__(student, sgd, *size, *taus, cfg.momentum.base_tau)

    def seconds_a_step(self, batch, steps: int, warm: int = 1) -> float:
        """Seconds of one step, mean of `steps` after `warm` more."""
        _, views, _ = batch
        for i in range(warm + steps):
            if i == warm:
                start = common.now()
            self.step(*views)
        return (common.now() - start) / steps


def changed(cfg, changes: dict):
    """A copy of the config with some keys set."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value)
    return cfg


class Timed:
    """Batches of a loader, with the moment at which each was asked for."""

    def __init__(self, loader, steps: int):
        self.loader, self.steps, self.asked = loader, steps, []

    def __len__(self):
        return self.steps

    def __iter__(self):
        source = iter(self.loader)
        for _ in range(self.steps):
            self.asked.append(common.now())
            try:
                yield next(source)
            except StopIteration:
                source = iter(self.loader)
                yield next(source)


class _End(pl.Callback):
    def on_train_epoch_end(self, trainer, module):
        self.at = common.now()


def seconds_a_step(model, loader, steps: int, warm: int = 1, callbacks=(), **trainer) -> float:
    """Seconds of one training step, fetching its batch included, in `steps` after `warm` more.

    A whole Lightning step: training_step, backward, optimizer, schedule, EMA, metrics. Nothing is
    written to disk and no progress is shown.
    """
    batches, end = Timed(loader, steps + warm), _End()
    fit = pl.Trainer(
        max_epochs=1,
        logger=False,
        callbacks=[end, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"accelerator": "auto", "devices": 1, **trainer},
    )
    fit.fit(model, batches)
    return (end.at - batches.asked[warm]) / steps


class Repeat:
    """One batch over and over, on the device of the model."""

    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        while True:
            yield self.batch


def random_batch(n: int, size: int, views: int = 2, classes: int = 10, device="cpu"):
    """[indexes (n,), [views of (n, 3, size, size)], targets (n,)] of random numbers."""
    return [
        torch.arange(n, device=device),
        [torch.randn(n, 3, size, size, device=device) for _ in range(views)],
        torch.randint(classes, (n,), device=device),
    ]


def random_images(
    cfg, size: int, count: int, device="cpu", drawn: bool = True
) -> data.BatchedLoader:
    """Random images (count, size, size, 3) on a device, their views drawn by the batched back end,
    or left to a captured step."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    read = recipe.read(cfg.augmentations, DATASETS["cifar10"].solo)
    how = {"recipe": read, "channels_last": not cfg.performance.disable_channel_last}
    images, n = images.to(device), cfg.optimizer.batch_size
    if drawn:
        draw = lambda batch, generator: batched.draw(batch, generator=generator, **how)
        return data.BatchedLoader(images, labels, draw, n)
    draw = lambda n, generator: batched.draw_all_params(read, n, size, size, generator)
    render = partial(batched.render, core=batched.apply_dense, **how)
    return data.UndrawnLoader(images, labels, draw, render, n)
