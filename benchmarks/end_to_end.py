"""Images a second of whole training runs: `ressl pretrain` beside the host's own ReSSL.

    python benchmarks/end_to_end.py --pairs 3 --json end_to_end.json

Ours is what the command runs: pretrain() on a folder, its run directory, metrics, checkpoints and
callbacks included, the batched back end, the paper's stem. The host's is its class as shipped, its
transforms, its loader with two workers and Lightning's Trainer, without any writing. Both train
ResNet-18 at batch 64 on the same random images, arrays in memory as CIFAR's are. The rate is that
of the steps after a warm-up: two of ours, six of the host's, whose workers have four batches ready.
Above 1 is better. images_per_s_ratio is in float32 on both sides; images_per_s_ratio_default each
as it comes, ours with `precision: auto`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from pathlib import Path

import common
import lightning.pytorch as pl
import numpy as np
import torch
import training
from views import AHEAD, ENDLESS, InMemory, host_loader

from ressl_plugin import config, host
from ressl_plugin.train import pretrain
from ressl_plugin.train.host_config import host_config
from ressl_plugin.utils import devices
from ressl_plugin.views import recipe

WARM = 2  # steps before the clock starts; of the host's AHEAD more


class Clock(pl.Callback):
    """Seconds from the end of step `warm` to the end of step `warm + steps`."""

    def __init__(self, warm: int, steps: int):
        self.first, self.last, self.seconds = warm, warm + steps, None

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Look at the clock at both ends."""
        if trainer.global_step == self.first:
            self.start = common.now()
        if trainer.global_step == self.last:
            self.seconds = common.now() - self.start


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; returns its figures."""
    parser = common.arguments(__doc__, pairs=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="steps a run, after the warm-up")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--workers", type=int, default=2, help="of the host's loader")
    args = parser.parse_args(argv)
    common.begin(args)
    with tempfile.TemporaryDirectory() as folder:
        count = args.batch * (args.steps + WARM)
        images = random_npz(Path(folder) / "images.npz", count, args.size)
        cfg = run_config(images, args.size, [
            f"optimizer.batch_size={args.batch}", f"backbone.name={args.backbone}",
            "batchnorm.groups=0", "precision=32-true", "max_epochs=1",
        ])  # fmt: skip
        default = training.changed(cfg, {"precision": "auto"})
        runs = common.alternate({
            "ours": lambda: ours(cfg, folder, args.steps),
            "default": lambda: ours(default, folder, args.steps),
            "host": lambda: hosts(cfg, args.size, args.steps, args.workers),
        }, args.pairs)  # fmt: skip
    figures = {}
    rows = [(f"host's own ({host.GENERATION})", common.middle(runs, "host"), 1.0, "", "")]
    for key, side, name, bar in (
        ("images_per_s_ratio", "ours", "ressl pretrain, float32", ">= 1.7"),
        ("images_per_s_ratio_default", "default", "ressl pretrain, as it comes", ">= 3.3"),
    ):
        figures[key], low, high = common.ratio(runs, side, "host")
        span = f"{low:.2f}-{high:.2f}"
        rows.append((name, common.middle(runs, side), figures[key], span, bar))
    common.table(rows, ("", "images/s", "ratio", "range", "bar"))
    return common.finish(args, figures)


def random_npz(path: Path, count: int, size: int) -> Path:
    """A file of random images (count, size, size, 3) in ten classes."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=random.integers(0, 10, count))
    return path


def run_config(images: Path, size: int, overrides: list[str]):
    """The CIFAR-10 recipe on a file of images, for one device."""
    cfg = config.load("cifar/ressl", [
        "data.dataset=custom", "data.format=npz", f"data.train_path={images}",
        "data.val_path=null", "data.backend=batched", "devices=1", "knn_eval.enabled=false",
        "enable_progress_bar=false", "enable_model_summary=false", *overrides,
    ])  # fmt: skip
    for entry in cfg.augmentations:
        entry.crop_size = size
    return config.finish(cfg)


def ours(cfg, folder: Path, steps: int, warm: int = WARM, callbacks=()) -> float:
    """Images a second of `ressl pretrain` in a fresh run directory under `folder`."""
    cfg = training.changed(cfg, {"run_dir": tempfile.mkdtemp(dir=folder)})
    clock = Clock(warm, steps)
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain.pretrain(cfg, callbacks=[clock, *callbacks])
    logging.disable(logging.NOTSET)
    return steps * cfg.optimizer.batch_size / clock.seconds


def hosts(cfg, size: int, steps: int, workers: int, warm: int = WARM + AHEAD) -> float:
    """Images a second of the host's own, on its CIFAR settings: so it makes its small stem."""
    cfg = training.changed(cfg, {"data__dataset": "cifar10"})
    cfg = host_config(devices.runnable(cfg), recipe.read(cfg.augmentations), 10)
    entries = cfg.augmentations
    views = [host.view_transform(entry) for entry in entries]
    transform = host.DATALOADER.prepare_n_crop_transform(views, [1] * len(views))
    dataset = InMemory(ENDLESS, size, transform)
    loader = host_loader(dataset, cfg.optimizer.batch_size, workers)
    clock = Clock(warm, steps)
    trainer = pl.Trainer(
        max_steps=warm + steps,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator=cfg.accelerator,
        devices=1,
        precision=cfg.precision,
    )
    torch.manual_seed(0)
    trainer.fit(training.hosts(cfg), loader)
    return steps * cfg.optimizer.batch_size / clock.seconds


if __name__ == "__main__":
    main()
