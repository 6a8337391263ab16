"""Defaults of a config in the main branch's schema, filled in the same way for both generations.

The values are the host's: what its constructors and its argument parser would have added. The
learning rate is left as it is; scaling it to the batch is the business of whoever trains.
"""

from omegaconf import DictConfig, OmegaConf, open_dict

from ressl_plugin import host
from ressl_plugin.config import schema
from ressl_plugin.utils.errors import UserError

BASE = {
    "method": "ressl",
    "data.dataset": "custom",
    "data.num_large_crops": 2,
    "data.num_small_crops": 0,
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
    # The host reads the word "None" as null (its YAML files spell it so).
    if OmegaConf.select(cfg, key) in (None, "None"):
        OmegaConf.update(cfg, key, value)


def fill(cfg: DictConfig, backbone: bool = True) -> DictConfig:
    """Fill what the host's base classes read. In place, as the host's own constructors do, whose
    scripts read `cfg.performance` afterwards; returns `cfg`. `backbone=False`: none is named.

    Raises:
        UserError: no backbone name or an unknown one, or no number of classes.
    """
    if backbone:
        choose("backbone.name", OmegaConf.select(cfg, "backbone.name"), host.BACKBONES)
    with open_dict(cfg):
        for key, value in BASE.items():
            setdefault(cfg, key, value)
        for key, value in OPTIMIZER_KWARGS.get(cfg.optimizer.name, {}).items():
            setdefault(cfg, f"optimizer.kwargs.{key}", value)
    if cfg.data.get("num_classes") is None:
        raise UserError("data.num_classes is missing; give how many classes the images have")
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
    """`table[name]`, or a UserError that lists what there is."""
    if name not in table:
        raise UserError(f"{what}={name} is unknown; there is: {', '.join(sorted(table))}")
    return table[name]
