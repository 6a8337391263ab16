"""Linear recipes (the schema of the host's main_linear.py), and the images that evaluators use."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.utils.data import DataLoader
from torchvision import transforms

from ressl_plugin import config, data
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.devices import check_accelerator, check_processor, device_count
from ressl_plugin.utils.errors import UserError

CHECKPOINTS = (".ckpt", ".pth", ".pt")
OF_A_RUN = ("data", "backbone", "augmentations", "seed")  # overrides that a protocol heeds


def resolve(target: str, overrides: list[str]) -> tuple[str, DictConfig | None]:
    """(run, None) when `target` is a run, (run, recipe) when it is a linear recipe.

    Raises:
        UserError: neither; a recipe that names no run or no optimizer; an unknown key in it.
    """
    path = Path(target)
    if path.is_dir() or path.suffix in CHECKPOINTS:
        return target, None
    given = config.load(target, overrides, "linear")
    full = config.finish_linear(given)
    run = (
        full.pretrained_feature_extractor
        if not OmegaConf.is_missing(full, "pretrained_feature_extractor")
        else None
    )
    if not run:
        raise UserError(
            f"{target}: pretrained_feature_extractor is not set; give the run directory: "
            "pretrained_feature_extractor=RUN"
        )
    # the run's data, where the recipe leaves them open: no default of the schema may take its place
    full.data = OmegaConf.masked_copy(full.data, list(given.get("data") or {}))
    return run, full


def check_overrides(words: list[str]) -> None:
    """Overrides of `ressl linear RUN`, of which few have an effect.

    Raises:
        UserError: one has none.
    """
    for word in words:
        if word.partition("=")[0].split(".")[0] not in OF_A_RUN:
            raise UserError(
                f"{word}: without effect on `ressl linear RUN`, whose optimizer, epochs and batch "
                "are the protocol's (--protocol); a linear recipe can set them"
            )


def details(recipe: DictConfig) -> dict:
    """For a record: what the recipe trains with, the learning rate as given (for 256 images)."""
    optimizer = recipe.optimizer
    return {
        "optimizer": optimizer.name,
        "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay,
        "batch_size": optimizer.batch_size,
        "epochs": recipe.max_epochs,
        "scheduler": recipe.scheduler.name,
    }


def check_backbone(recipe: DictConfig, run: Run) -> None:
    """The recipe's backbone and method must be the run's; what it leaves open is the run's.

    Raises:
        UserError: another backbone or method.
    """
    theirs = run.cfg.backbone.name
    if OmegaConf.is_missing(recipe.backbone, "name"):
        recipe.backbone.name = theirs
    ours = recipe.backbone.name
    if ours != theirs:
        raise UserError(
            f"backbone.name={ours}: {run.dir} was trained with {theirs}; set backbone.name={theirs}"
        )
    method, theirs = recipe.pretrain_method, run.cfg.method
    if method is not None and method.removesuffix("_host") != theirs.removesuffix("_host"):
        raise UserError(
            f"pretrain_method={method}: {run.dir} was trained with {theirs}; set "
            f"pretrain_method={theirs}"
        )


# Keys of the host's main_linear.py that would change the result and are not done here.
_NOT_HERE = {
    "auto_augment": False, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "finetune": False,
    "accumulate_grad_batches": 1,
}  # fmt: skip


def check_settings(recipe: DictConfig) -> None:
    """A recipe must not ask for what `ressl linear` does not do.

    Raises:
        UserError: it does; the host's own main_linear.py reads the run as well.
    """
    for key, usual in _NOT_HERE.items():
        if recipe[key] != usual:
            raise UserError(
                f"{key}={recipe[key]}: `ressl linear` trains a linear classifier on the frozen "
                f"backbone with crop and flip, {key}={usual}; solo-learn's main_linear.py on the "
                "run directory, or `ressl finetune`, does other things"
            )
    if device_count(recipe.devices, 1) != 1:
        raise UserError(f"devices={recipe.devices}: `ressl linear` uses one; set devices=1")


def device(recipe: DictConfig) -> str:
    """The device that the recipe's accelerator and devices name: auto, cpu, cuda, cuda:3.

    Raises:
        UserError: an accelerator that is not supported, a GPU on a machine without any.
    """
    check_accelerator(recipe.accelerator)
    named = {"gpu": "cuda"}.get(recipe.accelerator, recipe.accelerator)
    no_gpu = named == "cpu" or (named == "auto" and not torch.cuda.is_available())
    if no_gpu:
        check_processor(recipe.devices)
    if no_gpu or not isinstance(recipe.devices, (list, ListConfig)):
        return named
    return f"cuda:{recipe.devices[0]}"


def scale(recipe: DictConfig) -> int:
    """The recipe's batch; its learning rate, given for 256 images, is multiplied by batch / 256."""
    recipe.optimizer.lr *= recipe.optimizer.batch_size / 256
    return recipe.optimizer.batch_size


def training_transform(cfg: DictConfig):
    """Crops of data.linear_area, the flip of the run's contrastive view, its interpolation.

    Without that key the area is the contrastive view's, ImageNet's usual one from 160 pixels on.
    Not those of the weak view: Table 4 changes them, and would change the evaluation with them.
    """
    size = data.crop_size(cfg)
    read = data.view_recipe(cfg)
    seen = read.crops[read.student[0]]
    area = cfg.data.get("linear_area")
    if area is None:
        area = (0.08, 1.0) if size >= 160 else seen.area
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(area), interpolation=data.interpolation(cfg)),
            transforms.RandomHorizontalFlip(seen.flip_prob),
            transforms.ToTensor(),
            transforms.Normalize(*data.mean_std(cfg)),
        ]
    )


def datasets(cfg: DictConfig):
    """(train, val) of (image (3, S, S), target): crop and flip, and clean images."""
    train = data.build_dataset(cfg, "train", training_transform(cfg), need_labels=True)
    return train, data.build_dataset(cfg, "val", data.evaluation_transform(cfg), need_labels=True)


def loaders(cfg: DictConfig, batch_size: int = 256, seed: int = 0):
    """Loaders of `datasets`; the training one is shuffled, by its seed, and drops nothing."""
    train, val = datasets(cfg)
    workers = cfg.data.num_workers
    common = {"num_workers": workers, "persistent_workers": workers > 0}
    order = torch.Generator().manual_seed(seed)
    return (
        DataLoader(train, batch_size, shuffle=True, generator=order, **common),
        DataLoader(val, batch_size, **common),
    )
