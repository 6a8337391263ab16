"""What a config's values mean together: each is of its kind (schema.py), and still cannot work.

Each check raises UserError: the first value that cannot work, with what would be right.
"""

from __future__ import annotations

import logging
import os
from functools import reduce

from omegaconf import DictConfig, OmegaConf

from ressl_plugin.config import schema, settings
from ressl_plugin.config.kinds import is_number, judged
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)


def check(cfg: DictConfig) -> None:
    """A config of a pre-training, with its defaults."""
    ours = cfg.method == "ressl"
    plain = check_common(cfg, schema.ReSSLConfig if ours else schema.Config)
    settings.check_trainer(plain)
    if is_number(batches := plain.get("limit_train_batches")) and batches == 0:
        raise UserError(
            f"config: limit_train_batches={batches}: nothing would be trained; leave it out"
        )
    if ours:
        check_temperatures(cfg.method_kwargs)
    else:
        settings.check_method(plain["method_kwargs"], cfg.max_epochs)
    check_momentum(cfg)
    check_batchnorm(cfg)
    check_best(cfg)


def check_precision(name: str) -> None:
    """Refuse weights in half precision, to which Eq. 6 adds less than their last bit is worth."""
    if name.endswith("-true") and "16" in name:
        raise UserError(
            f"config: precision={name}: the teacher would stand still, its steps are rounded away; "
            f"{name.removesuffix('true')}mixed keeps its weights in float32"
        )


def check_method(cfg: DictConfig) -> None:
    """`check` of what the method itself reads, for a config that the host's scripts have read."""
    check_kinds(OmegaConf.to_container(cfg), schema.MethodConfig)
    check_momentum(cfg)
    check_batchnorm(cfg)
    check_temperatures(cfg.method_kwargs)


def check_kinds(plain: dict, cls) -> None:
    """Every value of a plain config is what its field in the schema says."""
    for key, field in schema.walk(cls):
        *sections, name = key.split(".")
        section = reduce(dict.__getitem__, sections, plain)
        if kind := field.metadata.get("kind"):
            judged(key, section[name], kind)


def check_common(cfg: DictConfig, cls) -> dict:
    """What pre-training and linear recipes have in common; the config as plain values."""
    plain = OmegaConf.to_container(cfg)
    check_kinds(plain, cls)
    if cfg.scheduler.name == "step" and cfg.scheduler.lr_decay_steps is None:
        raise UserError(
            "config: scheduler.name=step: scheduler.lr_decay_steps must say after which epochs, "
            "such as [60, 80]"
        )
    settings.check_optimizer(cfg.optimizer.name, plain["optimizer"]["kwargs"])
    return plain


def check_trainable(cfg: DictConfig) -> None:
    """`check` (a caller may have changed something) and what only a training here needs."""
    check(cfg)
    if cfg.method == "ressl":
        check_precision(str(cfg.precision))
    if cfg.optimizer.batch_size < 2 and not cfg.sync_batchnorm:
        raise UserError(
            f"config: optimizer.batch_size={cfg.optimizer.batch_size}: must be >= 2; batch norm "
            "has no statistics of one image"
        )
    needed, there = _bytes(OmegaConf.to_container(cfg.method_kwargs)), _memory()
    if needed > there:
        raise UserError(
            f"config: method_kwargs: heads and queue of these sizes need {needed >> 30} GiB of "
            f"memory, this machine has {there >> 30}"
        )


def _memory() -> int:
    """Bytes that this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(kwargs: dict) -> int:
    """Of the widest layer of the heads with gradient, momentum and teacher, and of the queue."""
    widths = sorted(kwargs.get(key) or 1 for key in settings.WIDTHS)
    prototypes = kwargs.get("num_prototypes") or 1
    prototypes = sum(prototypes) if isinstance(prototypes, list) else prototypes
    layer = max(widths[-1] * widths[-2], prototypes * (kwargs.get("proj_output_dim") or 1))
    return 4 * (4 * layer + 2 * (kwargs.get("queue_size") or 0) * widths[-1])


def check_batches(cfg: DictConfig, split: str, batches: int) -> None:
    """Settings that count batches, when it is known how many an epoch of `split` has."""
    key = f"limit_{split}_batches"
    limit = cfg.get(key)
    limited = batches
    if isinstance(limit, float):
        limited = int(batches * limit)
    elif limit is not None:
        limited = min(limit, batches)
    if limit and not limited and batches:
        raise UserError(
            f"config: {key}={limit}: less than one of the {batches} batches; a larger share, or a "
            "whole number of batches"
        )
    every = cfg.get("val_check_interval")
    if split == "train" and isinstance(every, int) and every > limited:
        raise UserError(
            f"config: val_check_interval={every}: an epoch has {limited} batches; at most as many, "
            "or a share such as 0.5"
        )


def check_batchnorm(cfg: DictConfig) -> None:
    """A shuffle takes each process's share of a batch for one group."""
    norm = cfg.batchnorm
    if norm.mode == "shuffle" and norm.groups > 1:
        raise UserError(
            f"config: batchnorm.mode=shuffle batchnorm.groups={norm.groups}: no batch is split in "
            "groups then; batchnorm.mode=group does it (on one device with batchnorm.permute=true "
            "in place of a shuffle), or set batchnorm.groups=0"
        )


def check_momentum(cfg: DictConfig) -> None:
    """0 <= base_tau <= final_tau <= 1."""
    base, final = cfg.momentum.base_tau, cfg.momentum.final_tau
    if not 0 <= base <= final <= 1:
        raise UserError(
            f"config: momentum.base_tau={base}, momentum.final_tau={final}: "
            "0 <= base_tau <= final_tau <= 1 is needed (equal: constant m)"
        )


def check_best(cfg: DictConfig) -> None:
    """What tells the best checkpoint is measured, and the method measures it."""
    if cfg.quality_eval.enabled and cfg.method != "ressl":
        raise UserError(
            f"config: quality_eval.enabled=true method={cfg.method}: it is a part of method=ressl; "
            "`ressl quality RUN` evaluates a run of any method"
        )
    best = cfg.checkpoint.best
    section = {None: None, "linear": None, "knn": "knn_eval"}.get(best, "quality_eval")
    if section and not cfg[section].enabled:
        raise UserError(f"config: checkpoint.best={best}: {section}.enabled=true measures it")


def check_temperatures(kwargs: DictConfig) -> None:
    """tau_t < tau_s: Section 3 of the paper."""
    tau_s, tau_t = kwargs.temperature_q, kwargs.temperature_k
    if tau_t >= tau_s:
        raise UserError(
            f"config: method_kwargs.temperature_k={tau_t} (tau_t) must be below "
            f"temperature_q={tau_s} (tau_s): the target relation is the sharper one"
        )


def warn_unused(cfg: DictConfig) -> None:
    """One line about keys of the host that are set and without effect on pre-training."""
    # the host's linear model, tuned from scratch, does heed this one
    heeded = ("optimizer.layer_decay",) if cfg.method == "supervised" else ()
    found = []
    for key, field in schema.walk(schema.Config):
        value, instead = OmegaConf.select(cfg, key), field.metadata.get("instead")
        # the host's files spell null as the word
        if instead and key not in heeded and value not in (field.default, "None"):
            found.append(f"{key}={value} ({instead})")
    if found:
        log.warning("config: no effect in `ressl pretrain`: %s", "; ".join(found))
