"""The images of a run, drawn as views by one of three back ends, and its validation images."""

from __future__ import annotations

import logging
from functools import cached_property, partial
from pathlib import Path

import lightning.pytorch as pl
import torch

from ressl_plugin import data, host
from ressl_plugin.config.checks import check_batches
from ressl_plugin.data import identity
from ressl_plugin.data.catalogue import row_of
from ressl_plugin.data.memory import CleanBatches, common_size
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.launch import launched_first
from ressl_plugin.views import recipe

log = logging.getLogger(__name__)

MEMORY_LIMIT = 4 << 30  # bytes of uint8 images that `auto` keeps on the device
# where a checkpoint says what it was trained on (Lightning's name for a data module's state)
DATA, TRAIN = "PretrainData", "train"
SMALL = 96  # pixels a side up to which `auto` keeps images in memory


class PretrainData(pl.LightningDataModule):
    """Batches `[indexes (N,), [views (N, 3, S, S)], targets (N,)]` and clean validation images.

    Args:
        cfg: a complete config (config.finish).
        run_dir: where what the data are is written down.

    Raises:
        UserError: missing or unusable data, a back end that cannot draw the recipe.
    """

    def __init__(self, cfg, run_dir: Path):
        super().__init__()
        self.cfg, self.run_dir = cfg, Path(run_dir)
        self.recipe = data.view_recipe(cfg)
        self.dataset = training_set(cfg)
        self.has_val = self._has_validation()
        if not self.has_val:  # to Lightning it is then a module without one, not an empty list
            self.val_dataloader = super().val_dataloader
        if ignored := getattr(self.dataset, "ignored", None):
            log.info(
                "data.train_path=%s: %d images; files that are no images are left out: %s",
                cfg.data.train_path, len(self.dataset), ignored,
            )  # fmt: skip
        self.backend = self._choose()
        total = cfg.optimizer.batch_size
        if len(self.dataset) < total:
            raise UserError(
                f"optimizer.batch_size={total}: larger than the data set of {len(self.dataset)} "
                "images; a smaller batch is needed"
            )

    @property
    def num_classes(self) -> int:
        """Classes that have a name; 1, as in the host, where nothing is labelled."""
        return max(1, len(self.dataset.classes))

    @cached_property
    def identity(self) -> dict:
        """What the training data are, wherever they lie (data.identify)."""
        return data.identify(self.dataset)

    def keep_identity(self) -> None:
        """Write it into the run directory, too; the first process does it for all."""
        if launched_first():
            identity.keep(self.run_dir, self.identity)

    def state_dict(self) -> dict:
        """Of every checkpoint; compared by resume.check_same_data."""
        return {TRAIN: self.identity}

    def _has_validation(self) -> bool:
        labelled = not self.cfg.data.no_labels and any(t >= 0 for t in self.dataset.targets)
        own_test_set = row_of(self.cfg).torchvision
        return labelled and (own_test_set or self.cfg.data.val_path is not None)

    def _choose(self) -> str:
        wanted = self.cfg.data.backend
        if wanted != "auto":
            return wanted
        if self.cfg.data.format == "dali":
            return "dali"
        equalize = any(view.equalize_prob for view in self.recipe.crops)
        # in memory, if they are of one size, a small one, or made so
        size = None if equalize else common_size(self.dataset, SMALL)
        small = size and max(size) <= SMALL
        fits = small and len(self.dataset) * size[0] * size[1] * 3 <= MEMORY_LIMIT
        chosen = "batched" if fits else "host"
        log.info("data.backend=auto: %s draws the views", chosen)
        return chosen

    def prepare_data(self) -> None:
        """Find unreadable files before the first step, not in epoch 37."""
        if not self.cfg.data.check:
            return
        self._check(self.dataset, self.identity)
        if self.has_val:
            val = data.build_dataset(self.cfg, "val")
            self._check(val, data.identify(val))

    def _check(self, dataset, found: dict) -> None:
        if hasattr(dataset, "samples"):  # files, not an array
            data.check_once(dataset, found["digest"], self.cfg.data.max_pixels)

    def train_dataloader(self):
        """The chosen back end's loader, on the trainer's device."""
        loader = getattr(self, f"_{self.backend}")()
        check_batches(self.cfg, "train", len(loader))
        return loader

    def _host(self):
        self.dataset.transform = HostViews(self.cfg)
        batch_size, workers = self.cfg.optimizer.batch_size, self.cfg.data.num_workers
        return data.WorkerLoader(self.dataset, batch_size, workers, **self._order())

    def _batched(self):
        from ressl_plugin.views import batched

        memory = data.MemoryImages(self.dataset, self.trainer.is_global_zero)
        images, labels = memory.to(self.trainer.strategy.root_device)
        core = None
        if self.cfg.performance.compile:
            core = torch.compile(batched.apply_dense, fullgraph=True)
        last = not self.cfg.performance.disable_channel_last

        batch_size = self.cfg.optimizer.batch_size
        how = {"recipe": self.recipe, "channels_last": last, "core": core}
        if getattr(self.trainer.lightning_module, "draws_views", False):
            size = images.shape[1:3]
            draw = lambda n, generator: batched.draw_all_params(self.recipe, n, *size, generator)
            render = partial(batched.render, **{**how, "core": core or batched.apply_dense})
            return data.UndrawnLoader(images, labels, draw, render, batch_size, **self._order())
        draw = lambda batch, generator: batched.draw(batch, generator=generator, **how)
        return data.BatchedLoader(images, labels, draw, batch_size, **self._order())

    def _dali(self):
        from ressl_plugin.data import dali

        device = self.trainer.strategy.root_device
        return dali.DaliLoader(self.cfg, self.recipe, self.dataset, device=device, **self._order())

    def _order(self) -> dict:
        """What fixes the order of the images, and this process's share of them (batches.Steps)."""
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        same = bool(self.cfg.get("overfit_batches"))  # in every epoch, as Lightning promises
        return {"seed": self.cfg.seed, "rank": rank, "world_size": ranks, "shuffle": not same}

    def val_dataloader(self):
        """Clean images of data.val_path (or the data set's test set); not asked for without."""
        loader = self._clean()
        check_batches(self.cfg, "val", len(loader))
        return loader

    def _clean(self):
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        dataset, (shorter, size, _) = data.build_dataset(self.cfg, "val"), data.fitting(self.cfg)
        as_they_are = shorter == size and common_size(dataset, size) == (size, size)
        if self.backend == "batched" and as_they_are:
            images = data.MemoryImages(dataset)
            parts = [t[rank::ranks] for t in images.to(self.trainer.strategy.root_device)]
            return CleanBatches(*parts, self.cfg.optimizer.batch_size, *data.mean_std(self.cfg))
        loader = data.evaluation_loader(self.cfg, "val")
        if 1 < ranks <= len(loader.dataset):
            # every image on exactly one rank: means over ranks count no image twice
            loader.dataset.keep(range(rank, len(loader.dataset), ranks))
        return loader


def training_set(cfg):
    """The images that a run of this config is trained on (data.build_dataset), untransformed."""
    labelled = cfg.method == "supervised"  # of STL-10, the twentieth that has a label
    dataset = data.build_dataset(cfg, "train" if labelled else "pretrain", need_labels=labelled)
    if labelled:
        data.keep_fraction(dataset, cfg.data.fraction)
    return dataset


class HostViews:
    """The host's torchvision pipelines of all views: PIL image -> list of tensors.

    Pickled as its config: a worker that was not forked (Python 3.14, macOS) would otherwise import
    the host before it is mended.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        mean, std = data.mean_std(cfg)
        common = {"mean": mean, "std": std, "interpolation": data.interpolation(cfg).value}
        entries = [{**common, **e} for e in recipe.expand(cfg.augmentations)]
        self.draws = [host.view_transform(e) for e in entries for _ in range(e["num_crops"])]

    def __call__(self, image):
        return [draw(image) for draw in self.draws]

    def __reduce__(self):
        return HostViews, (self.cfg,)
