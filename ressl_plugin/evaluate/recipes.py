"""Linear recipes (the schema of the host's main_linear.py), and the images that evaluators use."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin import config, data, schema
from ressl_plugin.errors import UserError
from ressl_plugin.run import Run
from ressl_plugin.views import recipe as views

CHECKPOINTS = (".ckpt", ".pth", ".pt")


def resolve(target: str, overrides: list[str]) -> tuple[str, DictConfig | None]:
    """(run, None) when `target` is a run, (run, recipe) when it is a linear recipe.

    Raises:
        UserError: neither; a recipe that names no run; an unknown key in it.
    """
    path = Path(target)
    if path.is_dir() or path.suffix in CHECKPOINTS:
        return target, None
    given = config.load(str(config.find(target, "linear")), overrides)
    try:
        full = OmegaConf.merge(OmegaConf.structured(schema.LinearConfig), given)
        full = OmegaConf.create(OmegaConf.to_container(full))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{target}: {key}: {str(error).splitlines()[0]}") from None
    run = full.pretrained_feature_extractor if not OmegaConf.is_missing(
        full, "pretrained_feature_extractor") else None
    if not run:
        raise UserError(
            f"{target}: pretrained_feature_extractor is not set; give the run directory: "
            "pretrained_feature_extractor=RUN"
        )
    return run, full


def check_backbone(recipe: DictConfig, run: Run) -> None:
    """The recipe's backbone must be the run's; what it leaves open is the run's.

    Raises:
        UserError: another backbone.
    """
    ours, theirs = recipe.backbone.name, run.cfg.backbone.name
    if ours not in (theirs, "???"):
        raise UserError(
            f"backbone.name={ours}: {run.dir} was trained with {theirs}; set backbone.name={theirs}"
        )


def training_transform(cfg: DictConfig):
    """Crop and flip of the run's weak view; ImageNet's usual crop area from 160 pixels on."""
    size = data.crop_size(cfg)
    read = views.read(cfg.augmentations, data.mean_std(cfg))
    weak = read.crops[read.teacher]
    area = (0.08, 1.0) if size >= 160 else weak.area
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, area, interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(weak.flip_prob),
            transforms.ToTensor(),
            transforms.Normalize(*data.mean_std(cfg)),
        ]
    )


def datasets(cfg: DictConfig):
    """(train, val) of (image (3, S, S), target): crop and flip, and clean images."""
    train = data.open(cfg, "train", training_transform(cfg), need_labels=True)
    return train, data.open(cfg, "val", data.evaluation_transform(cfg), need_labels=True)


def loaders(cfg: DictConfig, batch_size: int = 256):
    """Loaders of `datasets`; the training one is shuffled and drops nothing."""
    train, val = datasets(cfg)
    workers = cfg.data.num_workers
    common = {"num_workers": workers, "persistent_workers": workers > 0}
    return (
        DataLoader(train, batch_size, shuffle=True, **common),
        DataLoader(val, batch_size, **common),
    )
