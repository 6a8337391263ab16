"""Defaults of a config in the main branch's schema, filled in the same way for both generations.

The values are the host's: what its constructors and its argument parser would have added. The
learning rate is left as it is; scaling it to the batch is the business of whoever trains.
"""

import os

from omegaconf import DictConfig, OmegaConf, open_dict

from ressl_plugin.config import schema
from ressl_plugin.utils.errors import UserError

CLASSES = {"cifar10": 10, "cifar100": 100, "stl10": 10, "imagenet": 1000, "imagenet100": 100}
DATASETS = (*CLASSES, "custom")

BASE = {
    "max_epochs": 100,
    "accumulate_grad_batches": 1,
    "backbone.kwargs": {},
    "method_kwargs": {},
    "optimizer.name": "sgd",
    "optimizer.batch_size": 128,
    "optimizer.lr": 0.3,
    "optimizer.classifier_lr": 0.3,
    "optimizer.weight_decay": 1e-4,
    "optimizer.exclude_bias_n_norm_wd": False,
    "optimizer.kwargs": {},
    # the host's are the schema's
    **{
        key: field.default
        for key, field in schema.walk(schema.Config)
        if key.startswith(("scheduler.", "knn_eval.", "performance.", "momentum."))
    },
}
OPTIMIZER_KWARGS = {
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9, "eta": 1e-3, "clip_lr": False, "exclude_bias_n_norm": False},
    "adam": {},
    "adamw": {"betas": [0.9, 0.999]},
}

# Keys that the main branch demands of each method without a default of its own: the values of
# 1.0.2's argument parser, or of the main branch's CIFAR recipe for the methods 1.0.2 lacks.
METHOD = {
    "all4one": {"proj_output_dim": 256, "pred_hidden_dim": 4096, "temperature": 0.2},
    "barlow_twins": {"proj_output_dim": 2048},
    "byol": {"proj_output_dim": 256, "pred_hidden_dim": 512},
    "deepclusterv2": {"proj_output_dim": 128},
    "dino": {"proj_output_dim": 256, "num_prototypes": 4096},
    "mae": {"decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16},
    "mocov2plus": {"proj_output_dim": 128, "temperature": 0.1},
    "mocov3": {
        "proj_hidden_dim": 4096,
        "proj_output_dim": 256,
        "pred_hidden_dim": 4096,
        "temperature": 0.2,
    },
    "nnbyol": {"proj_output_dim": 256, "pred_hidden_dim": 512},
    "nnclr": {"proj_output_dim": 256, "pred_hidden_dim": 4096, "temperature": 0.2},
    "nnsiam": {"proj_output_dim": 128, "pred_hidden_dim": 512},
    "ressl": {"proj_output_dim": 256, "temperature_q": 0.1, "temperature_k": 0.04},
    "simclr": {"proj_output_dim": 128, "temperature": 0.1},
    "simsiam": {"proj_output_dim": 128, "pred_hidden_dim": 512},
    "supcon": {"proj_output_dim": 256, "temperature": 0.2},
    "swav": {"proj_output_dim": 128, "temperature": 0.1},
    "vibcreg": {"proj_output_dim": 2048},
    "vicreg": {"proj_output_dim": 2048},
    "wmse": {"proj_hidden_dim": 1024, "proj_output_dim": 128},
}


def as_config(cfg) -> DictConfig:
    """`cfg` itself if it is a DictConfig, else one made of it (a dict)."""
    return cfg if isinstance(cfg, DictConfig) else OmegaConf.create(cfg)


def setdefault(cfg: DictConfig, key: str, value) -> None:
    """Set the dotted `key` unless it is there; missing and null sections are made."""
    *sections, last = key.split(".")
    for section in sections:
        if cfg.get(section) is None:
            cfg[section] = {}
        cfg = cfg[section]
    # The host reads the word "None" as null (its YAML files spell it so).
    if cfg.get(last) is None or cfg.get(last) == "None":
        cfg[last] = value


def count_classes(cfg: DictConfig) -> int:
    """Number of classes: known of the data set, else the folders under data.train_path."""
    name = cfg.data.get("dataset")
    if name in CLASSES:
        return CLASSES[name]
    path = cfg.data.get("train_path")
    if path is None or not os.path.isdir(path):
        raise UserError(
            f"data.num_classes: cannot be counted for data.dataset={name} "
            f"(data.train_path={path} is no folder); give one of them"
        )
    # As the host does, one class where an image folder has no labels.
    return max(1, sum(entry.is_dir() for entry in os.scandir(path)))


def count_crops(cfg: DictConfig) -> tuple[int, int]:
    """(large, small) crops of `augmentations`, large being the first entry's size; else (2, 0)."""
    augmentations = cfg.get("augmentations")
    if not augmentations:
        return 2, 0
    counts = [0, 0]
    for entry in augmentations:
        counts[entry.crop_size != augmentations[0].crop_size] += entry.get("num_crops", 1)
    return counts[0], counts[1]


def fill(cfg: DictConfig, backbone: bool = True) -> DictConfig:
    """Fill what the host's base classes read. In place, as the host's own constructors do, whose
    scripts read `cfg.performance` afterwards; returns `cfg`. `backbone=False`: none is named.

    Raises:
        UserError: no backbone name, or a class count that cannot be told.
    """
    with open_dict(cfg):
        for section in ("backbone", "data", "optimizer", "scheduler"):
            if cfg.get(section) is None:
                cfg[section] = {}
        if backbone and cfg.backbone.get("name") is None:
            raise UserError("backbone.name is missing; give one, as resnet18")
        for key, value in BASE.items():
            setdefault(cfg, key, value)
        for key, value in OPTIMIZER_KWARGS.get(cfg.optimizer.name, {}).items():
            setdefault(cfg, f"optimizer.kwargs.{key}", value)
        if cfg.data.get("num_classes") is None:
            cfg.data.num_classes = count_classes(cfg)
        large, small = count_crops(cfg)
        setdefault(cfg, "data.num_large_crops", large)
        setdefault(cfg, "data.num_small_crops", small)
        setdefault(cfg, "data.dataset", "custom")
        setdefault(cfg, "method", "ressl")
    return cfg


def fill_method(cfg: DictConfig, values: dict) -> DictConfig:
    """Fill `method_kwargs` with `values` where it has none; in place."""
    with open_dict(cfg):
        for key, value in values.items():
            setdefault(cfg, f"method_kwargs.{key}", value)
    return cfg


def copy_of(cfg) -> DictConfig:
    """A copy to fill, so that the caller's config stays as it is."""
    return OmegaConf.create(OmegaConf.to_container(as_config(cfg), resolve=True))


def choose(what: str, name, table):
    """`table[name]` (of a tuple `name` itself), or a UserError that lists what there is."""
    if name not in table:
        raise UserError(f"{what}={name} is unknown; there is: {', '.join(sorted(table))}")
    return table[name] if isinstance(table, dict) else name


def trainable(methods: dict) -> dict:
    """The registry without its two entries that are no pre-training method."""
    return {name: cls for name, cls in methods.items() if name not in ("base", "linear")}


def host_name(method: str) -> str:
    """The host's name of a method that was registered anew as NAME_host."""
    return method.removesuffix("_host")
