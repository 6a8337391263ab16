"""Linear recipes (the schema of the host's main_linear.py), and the images that evaluators use."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)
from torchvision import transforms

from ressl_plugin import config, data
from ressl_plugin.data import statistics
from ressl_plugin.evaluate.subject import ALL_IMAGES, UNNAMED
from ressl_plugin.run.directories import Run
from ressl_plugin.utils.devices import check_accelerator, check_processor, device_count
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

# The paper's (Evaluation); ImageNet's from the reference code
PROTOCOLS = {"small": "cifar/ressl", "imagenet": "imagenet/ressl"}
OF_A_RUN = ("data", "backbone", "augmentations", "seed")  # overrides that a protocol heeds


def resolve(target: str, overrides: list[str]) -> tuple[str, DictConfig | None]:
    """(run, None) when `target` is a run, (run, recipe) when it is a linear recipe."""
    path = Path(target)
    if path.is_dir() or path.suffix in (".ckpt", ".pth", ".pt"):
        return target, None
    recipe = read(target, overrides)
    run = recipe.get("pretrained_feature_extractor")
    if not run:
        raise UserError(
            f"{target}: pretrained_feature_extractor is not set; give the run directory: "
            "pretrained_feature_extractor=RUN"
        )
    return run, recipe


def read(target: str, overrides: list[str] = ()) -> DictConfig:
    """A linear recipe, filled in but for the data that it leaves open, which are the run's."""
    given = config.load(target, list(overrides), "linear")
    full = config.finish_linear(given)
    named = list(given.get("data") or {})
    if "path" in named:  # it has been put in their place
        named += ["train_path", "val_path"]
    full.data = OmegaConf.masked_copy(full.data, named)
    return full


def record_name(target: str, overrides: list[str]) -> str:
    """What a linear recipe is called in records, with the overrides that make it another."""
    path, ours = config.find(target, "linear").resolve(), (config.RECIPES / "linear").resolve()
    name = path.relative_to(ours).with_suffix("") if path.is_relative_to(ours) else path.stem
    # of a recipe the batch is the training's
    usual = {*UNNAMED, "pretrained_feature_extractor"} - {"optimizer.batch_size"}
    overrides = [" ".join(word.split()) for word in overrides]  # a record's name is one line
    changed = [word for word in overrides if word.lstrip("+").partition("=")[0] not in usual]
    return ", ".join([f"recipe {name}", *changed])


def protocol(name: str) -> DictConfig:
    """A protocol of the paper as a linear recipe, which works on any run's images."""
    if name not in PROTOCOLS:
        raise UserError(f"linear: protocol '{name}' unknown; one of {', '.join(PROTOCOLS)}")
    # by its place: a file of the same name in the working directory would come before a recipe
    recipe = read(str(config.RECIPES / "linear" / f"{PROTOCOLS[name]}.yaml"))
    recipe.data = OmegaConf.masked_copy(recipe.data, [])
    return recipe


def check_overrides(words: list[str], fast: bool) -> None:
    """Raise UserError for an override of `ressl linear RUN` that would have no effect.

    fast: features are extracted first, in batches of the run's optimizer.batch_size.
    """
    for word in words:
        key = word.partition("=")[0]
        if key.split(".")[0] not in OF_A_RUN and not (fast and key == "optimizer.batch_size"):
            raise UserError(
                f"{word}: without effect on `ressl linear RUN`, whose optimizer, epochs and batch "
                "are the protocol's (--protocol); a linear recipe can set them"
            )


def settle(recipe: DictConfig, run: Run) -> None:
    """Let the run have the recipe's images, and the recipe the run's backbone.

    Raises:
        UserError: it names another backbone or method, or asks for what is not done here.
    """
    if OmegaConf.is_missing(recipe.backbone, "name"):
        recipe.backbone.name = run.cfg.backbone.name
    named = [("backbone.name", recipe.backbone.name, run.cfg.backbone.name)]
    if recipe.pretrain_method is not None:
        named.append(("pretrain_method", recipe.pretrain_method, run.cfg.method))
    for key, ours, its in named:
        if ours.removesuffix("_host") != its.removesuffix("_host"):
            raise UserError(f"{key}={ours}: {run.dir} was trained with {its}; set {key}={its}")
    check_settings(recipe)
    trained_on = run.cfg.data.dataset
    run.cfg.data = OmegaConf.merge(run.cfg.data, recipe.data)
    if run.cfg.data.dataset != trained_on:
        log.warning("evaluated on %s, trained on %s", run.cfg.data.dataset, trained_on)
    statistics.keep(run.cfg, trained_on)


# Keys of the host's main_linear.py that would change the result and are not done here.
_NOT_HERE = {
    "auto_augment": False, "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "finetune": False,
    "accumulate_grad_batches": 1,
}  # fmt: skip


def check_settings(recipe: DictConfig) -> None:
    """Raise UserError where a recipe asks for what `ressl linear` does not do."""
    for key, usual in _NOT_HERE.items():
        if recipe[key] != usual:
            raise UserError(
                f"{key}={recipe[key]}: `ressl linear` trains a linear classifier on the frozen "
                f"backbone with crop and flip, {key}={usual}; `ressl finetune` "
                "trains the backbone, too"
            )
    if recipe.data.get("fraction", -1) not in (-1, 1):
        raise UserError(f"data.fraction={recipe.data.fraction}: {ALL_IMAGES}")
    if device_count(recipe.devices, 1) != 1:
        raise UserError(f"devices={recipe.devices}: `ressl linear` uses one; set devices=1")


def device(recipe: DictConfig) -> str:
    """The device that the recipe's accelerator and devices name: auto, cpu, cuda, cuda:3."""
    check_accelerator(recipe.accelerator)
    named = "cuda" if recipe.accelerator == "gpu" else recipe.accelerator
    no_gpu = named == "cpu" or (named == "auto" and not torch.cuda.is_available())
    if no_gpu:
        check_processor(recipe.devices)
    if no_gpu or not isinstance(recipe.devices, (list, ListConfig)):
        return named
    return f"cuda:{recipe.devices[0]}"


def training_transform(cfg: DictConfig):
    """Crops of data.linear_area, the flip of the run's contrastive view, its interpolation.

    Without that key the area is the contrastive view's, ImageNet's usual one from 160 pixels on.
    Not those of the weak view: Table 4 changes them, and would change the evaluation with them.
    """
    size, read = data.crop_size(cfg), data.view_recipe(cfg)
    seen = read.crops[read.student[0]]
    area = cfg.data.get("linear_area") or ((0.08, 1.0) if size >= 160 else seen.area)
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
    if len(set(train.targets)) < 2:
        raise UserError(
            f"data.train_path={cfg.data.train_path}: all images are of one class; give two or more"
        )
    return train, data.build_dataset(cfg, "val", data.evaluation_transform(cfg), need_labels=True)


def loaders(cfg: DictConfig, batch_size: int = 256, seed: int = 0):
    """Loaders of `datasets`; the training one is shuffled, by its seed, and drops nothing."""
    train, val = datasets(cfg)
    how = {"num_workers": cfg.data.num_workers, "persistent_workers": cfg.data.num_workers > 0}
    order = torch.Generator().manual_seed(seed)
    shuffled = DataLoader(train, batch_size, shuffle=True, generator=order, **how)
    return shuffled, DataLoader(val, batch_size, **how)


def cached(features_train, y_train, features_test, y_test, batch_size: int, seed: int):
    """What stands for a backbone and `loaders` where features (N, d) were extracted before."""
    parts = (features_train, y_train), (features_test, y_test)
    # (N, C, H, W), as the host expects
    train, test = (TensorDataset(x[:, :, None, None], y) for x, y in parts)
    train.classes = range(int(max(y_train.max(), y_test.max())) + 1)
    order = RandomSampler(train, generator=torch.Generator().manual_seed(seed))
    loaders = [  # a batch is one indexing, not as many as it has rows
        DataLoader(images, batch_size=None, sampler=BatchSampler(rows, batch_size, drop_last=False))
        for images, rows in ((train, order), (test, SequentialSampler(test)))
    ]
    network = nn.Flatten()
    network.num_features = features_train.shape[1]
    return network, loaders
