"""What the `ressl` command does, from Python: train, open a run, evaluate it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import OmegaConf
from torch import Tensor

from ressl_plugin import config as configs
from ressl_plugin import data
from ressl_plugin.evaluate import knn, linear
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.subject import device_named
from ressl_plugin.run import directories
from ressl_plugin.utils.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from PIL import Image


class Run(directories.Run):
    """A run directory: its config `cfg`, its weights (`backbone()`), its evaluations.

    Examples:
        >>> run = open_run("runs/mine")
        >>> print(run.knn()["top1"], run.linear()["top1"])
        >>> z = run.features(["a.jpg", "b.jpg"])
    """

    def features(
        self, images: Sequence[str | Path | Image.Image | np.ndarray | Tensor], device: str = "auto"
    ) -> Tensor:
        """Features (N, d) float32, on the CPU, of images shown as evaluators show a run's own.

        Args:
            images: of any sizes: file names, PIL images, uint8 arrays (H, W, 3) or uint8 tensors
                (3, H, W); a batch of either kind is a sequence of them.
            device: auto, cpu, cuda, cuda:1.

        Raises:
            UserError: no image, or one that cannot be read.
        """
        loader = data.given_loader(self.cfg, images)
        return extract(self.backbone(), loader, device_named(device), progress=False)[0]

    def knn(self, k: int = 20, temperature: float = 0.07, device: str = "auto") -> dict[str, float]:
        """Accuracies in %, {"top1", "top5"}, of the weighted kNN vote; added to results.json.

        Raises:
            UserError: images or labels are missing.
        """
        return _values(knn.evaluate(self._path, [], [k], [temperature], device=device))

    def linear(
        self, protocol: str | None = None, fast: bool = True, device: str = "auto"
    ) -> dict[str, float]:
        """Accuracies in %, {"top1", "top5"}, of a linear classifier; added to results.json.

        Args:
            protocol: `small` or `imagenet`, the paper's; None: by the crop size.
            fast: on features extracted once: logistic regression, or the protocol that is named.

        Raises:
            UserError: images or labels are missing.
        """
        return _values(linear.evaluate(str(self._path), [], protocol, fast, device))

    @property
    def _path(self) -> Path:
        # previous/last.ckpt has no config beside it
        return self.file if self.file.parent == self.dir else self.dir


def open_run(path: str | Path, best: bool = False) -> Run:
    """A run by its directory or by a checkpoint in it.

    Args:
        best: a directory's best.ckpt, which `checkpoint.best` keeps, not the last checkpoint.

    Raises:
        UserError: no such run, or it has no config or no such checkpoint.
    """
    found = directories.open_run(directories.best(path) if best else path)
    return Run(found.dir, found.cfg, found.file)


def pretrain(
    config: str | Path | Mapping[str, Any], callbacks: Iterable[Callback] = (), **overrides: Any
) -> Run:
    """Train by a config, as `ressl pretrain` does, into a run directory.

    Args:
        config: a YAML file, a recipe by name (`ressl pretrain --help`), or a config's keys.
        callbacks: of Lightning, beside the run's own.
        overrides: keys of the config; a mapping changes the keys it names and leaves the others.

    Examples:
        >>> run = pretrain("digits/ressl", max_epochs=10, optimizer={"lr": 0.1})

    Raises:
        UserError: anything about config, data or directory that cannot work.
        RunFault: the run had to stop.
    """
    from ressl_plugin.train.pretrain import pretrain as train

    if isinstance(config, (str, Path)):
        cfg = configs.load(str(config))
    else:
        cfg = OmegaConf.create(dict(config))
    for key, value in overrides.items():
        value = str(value) if isinstance(value, Path) else value
        OmegaConf.update(cfg, key, value, force_add=True)
    own = overrides.get("data")
    inner = [f"data.{key}" for key in own] if isinstance(own, Mapping) else []
    configs.refuse_two_places(cfg, [*overrides, *inner])
    full = configs.finish(cfg)
    if not full.checkpoint.enabled:
        raise UserError("pretrain: checkpoint.enabled=false leaves no run to return; leave it out")
    return open_run(train(full, callbacks))


def _values(records: list[dict]) -> dict[str, float]:
    return {record["metric"]: record["value"] for record in records}
