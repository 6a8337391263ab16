"""Values of a config that have the right type and cannot work, or would mean nothing."""

from __future__ import annotations

import difflib
import logging
import math
import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ressl_plugin.config import settings
from ressl_plugin.config.schema import LARGEST_IMAGE
from ressl_plugin.config.settings import COLDEST, LONGEST_QUEUE, WIDEST
from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)

PRECISIONS = (
    "32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true",
    "32", "16", "bf16", "64", 32, 16, 64,
)  # fmt: skip
CHOICES = {
    "data.backend": ("auto", "host", "dali", "batched"),
    "data.statistics": ("solo", "paper"),
    "data.interpolation": ("bicubic", "bilinear"),
    "data.format": ("image_folder", "dali", "h5", "npz"),
    "backbone.stem": ("auto", "paper", "solo", "imagenet"),
    "batchnorm.mode": ("group", "shuffle", "sync"),
    "knn_eval.distance_func": ("cosine", "euclidean"),
    "scheduler.interval": ("step", "epoch"),
    "scheduler.name": ("warmup_cosine", "step", "none"),
    "optimizer.name": ("sgd", "lars", "adam", "adamw"),
    "faults.non_finite": ("stop", "skip"),
    "dali.device": ("gpu", "cpu"),
}
AT_LEAST_ONE = (
    "optimizer.batch_size", "knn_eval.k", "knn_eval.every", "num_nodes",
    "accumulate_grad_batches", "performance.log_every", "checkpoint.frequency",
)  # fmt: skip
AT_LEAST_ZERO = (
    "optimizer.lr", "optimizer.classifier_lr", "optimizer.weight_decay", "scheduler.warmup_epochs",
    "scheduler.warmup_start_lr", "scheduler.min_lr", "gradient_clip_val", "batchnorm.groups",
    "checkpoint.every_n_steps",
)  # fmt: skip
# the most is what numpy's generator takes for the seed; for the others, beyond is a slip of the
# finger, and what it costs in memory or processes would kill the run with no word about its cause
BETWEEN = {
    "max_epochs": (1, 10**7),
    "seed": (0, 2**32 - 1),
    "data.num_workers": (0, 1024),
    "data.image_size": (1, LARGEST_IMAGE),
}
WIDTHS = ("proj_hidden_dim", "proj_output_dim", "pred_hidden_dim")
LINEAR_SCHEDULERS = (*CHOICES["scheduler.name"], "reduce", "exponential")
CONTAINER_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
)  # fmt: skip
# keys of the host that nothing here reads, and what does the same
UNUSED = {
    "auto_resume.enabled": "resume=true continues a run",
    "auto_umap.enabled": "`ressl figures RUN` draws the features",
    "debug_augmentations": "`ressl views CONFIG` draws the views",
    "checkpoint.dir": "run_dir=… is where a run goes",
    "checkpoint.keep_prev": "the last checkpoint and the one before are kept",
    "dali.encode_indexes_into_labels": "every batch has its images' indexes",
    "optimizer.token_learner": "leave it out",
    "optimizer.layer_decay": "leave it out; pre-training has one rate for all layers",
}


def check(cfg: DictConfig) -> None:
    """Values that each have the right type but cannot work, of a config with its defaults.

    Raises:
        UserError: the first of them, with what would be right.
    """
    _check_common(cfg, CHOICES)
    if not (cfg.resume is None or isinstance(cfg.resume, (bool, str, Path))):
        raise UserError(f"config: resume={cfg.resume!r}: true, false, or the path of a run")
    plain = OmegaConf.to_container(cfg)
    settings.check_trainer(plain)
    for key in ("limit_train_batches", "max_steps"):
        if settings.is_number(plain.get(key)) and cfg[key] == 0:
            raise UserError(f"config: {key}={cfg[key]}: nothing would be trained; leave it out")
    if cfg.method == "ressl":
        check_ressl(cfg.method_kwargs)
    else:
        settings.check_method(plain["method_kwargs"], cfg.max_epochs)
    check_momentum(cfg)
    check_batchnorm(cfg)


def check_linear(cfg: DictConfig) -> None:
    """`check` for a linear recipe.

    Raises:
        UserError: the first value that cannot work.
    """
    _check_common(cfg, {**CHOICES, "scheduler.name": LINEAR_SCHEDULERS})
    if not 0 <= cfg.label_smoothing <= 1:
        raise UserError(f"config: label_smoothing={cfg.label_smoothing}: must be >= 0 and <= 1")


def check_trainable(cfg: DictConfig) -> None:
    """`check` (a caller may have changed something) and what only a training here needs.

    Raises:
        UserError: see `check`; a batch of one image, of which batch norm has no statistics; heads
            or a queue that do not fit this machine.
    """
    check(cfg)
    if cfg.optimizer.batch_size < 2 and not cfg.sync_batchnorm:
        raise UserError(
            f"config: optimizer.batch_size={cfg.optimizer.batch_size}: must be >= 2; batch norm "
            "has no statistics of one image"
        )
    kwargs = OmegaConf.to_container(cfg.method_kwargs)
    needed, there = _bytes(kwargs), _memory()
    if needed > there:
        raise UserError(
            f"config: method_kwargs: heads and queue of these sizes need {needed >> 30} GiB of "
            f"memory, this machine has {there >> 30}"
        )


def _memory() -> int:
    """Bytes that this process may have: the machine's, or its container's."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in CONTAINER_LIMITS:
        text = limit.read_text().strip() if limit.is_file() else "max"
        there = min(there, int(text)) if text.isdecimal() else there
    return there


def _bytes(kwargs: dict) -> int:
    """Of the widest layer of the heads with gradient, momentum and teacher, and of the queue."""
    widths = sorted(kwargs.get(key) or 1 for key in WIDTHS)
    prototypes = kwargs.get("num_prototypes") or 1
    prototypes = sum(prototypes) if isinstance(prototypes, list) else prototypes
    layer = max(widths[-1] * widths[-2], prototypes * (kwargs.get("proj_output_dim") or 1))
    return 4 * (4 * layer + 2 * (kwargs.get("queue_size") or 0) * widths[-1])


def check_batches(cfg: DictConfig, split: str, batches: int) -> None:
    """Settings that count batches, when it is known how many an epoch has.

    Args:
        split: "train" or "val".

    Raises:
        UserError: a share of less than one batch; validation after more batches than there are.
    """
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


def _check_common(cfg: DictConfig, choices: dict) -> None:
    check_numbers(cfg)
    for key, known in choices.items():
        if key.split(".")[0] in cfg:
            _one_of(cfg, key, *known)
    if cfg.precision is not None:  # Lightning takes that for 32-true
        _one_of(cfg, "precision", *PRECISIONS)
    for key in AT_LEAST_ONE:
        _between(cfg, key, 1)
    for key in AT_LEAST_ZERO:
        _between(cfg, key, 0)
    for key, bounds in BETWEEN.items():
        _between(cfg, key, *bounds)
    _check_fraction(cfg.data.fraction)
    _check_area(cfg.data.linear_area)
    _check_steps(cfg.scheduler)
    kwargs = cfg.optimizer.kwargs
    settings.check_optimizer(cfg.optimizer.name, OmegaConf.to_container(kwargs) if kwargs else {})


def _check_steps(scheduler: DictConfig) -> None:
    steps = scheduler.lr_decay_steps
    if scheduler.name == "step" and steps is None:
        raise UserError(
            "config: scheduler.name=step: scheduler.lr_decay_steps must say after which epochs, "
            "such as [60, 80]"
        )
    if any(type(step) is not int or step < 0 for step in steps or []):
        raise UserError(f"config: scheduler.lr_decay_steps={list(steps)}: epochs, from 0 on")


def check_batchnorm(cfg: DictConfig) -> None:
    """A shuffle takes each process's share of a batch for one group.

    Raises:
        UserError: groups that it would not split.
    """
    norm = cfg.batchnorm
    if norm.mode == "shuffle" and norm.groups > 1:
        raise UserError(
            f"config: batchnorm.mode=shuffle batchnorm.groups={norm.groups}: no batch is split in "
            "groups then; batchnorm.mode=group does it (on one device with batchnorm.permute=true "
            "in place of a shuffle), or set batchnorm.groups=0"
        )


def check_numbers(cfg: DictConfig) -> None:
    """Every number is finite and fits a machine word; those of views are recipe.read's business.

    Raises:
        UserError: the first that does not.
    """
    for key, value in _numbers(OmegaConf.to_container(cfg)):
        if key.split(".")[0] == "augmentations":
            continue
        if not -(2**63) <= value < 2**63:  # False for nan, too
            # Python refuses to print an int of thousands of digits
            long = isinstance(value, int) and value.bit_length() > 100
            text = f"(a number of {value.bit_length()} bits)" if long else f"{value}"
            raise UserError(f"config: {key}={text}: must be a finite number of less than 2**63")


def _numbers(node, prefix=""):
    """(dotted key, number) of everything under a plain dict or list."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list)):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{key}", value


def check_momentum(cfg: DictConfig) -> None:
    """0 <= base_tau <= final_tau <= 1.

    Raises:
        UserError: otherwise.
    """
    base, final = cfg.momentum.base_tau, cfg.momentum.final_tau
    if not 0 <= base <= final <= 1:
        raise UserError(
            f"config: momentum.base_tau={base}, momentum.final_tau={final}: "
            "0 <= base_tau <= final_tau <= 1 is needed (equal: constant m)"
        )


def check_ressl(kwargs: DictConfig) -> None:
    """Limits of the method's own settings (tau_t < tau_s: Section 3 of the paper).

    Raises:
        UserError: the first that is beyond its limits.
    """
    for key, most in (*((key, WIDEST) for key in WIDTHS), ("queue_size", LONGEST_QUEUE)):
        if not 1 <= kwargs[key] <= most:
            raise UserError(
                f"config: method_kwargs.{key}={kwargs[key]}: must be >= 1 and <= {most}"
            )
    tau_s, tau_t = kwargs.temperature_q, kwargs.temperature_k
    if not COLDEST <= tau_t < tau_s < math.inf:
        raise UserError(
            f"config: method_kwargs.temperature_k={tau_t} (tau_t) must be >= {COLDEST} and below "
            f"temperature_q={tau_s} (tau_s): the target relation is the sharper one"
        )
    epochs, tau = kwargs.infonce_epochs, kwargs.infonce_temperature
    if epochs < 0 or not COLDEST <= tau < math.inf:
        raise UserError(
            "config: method_kwargs.infonce_epochs must be >= 0 and infonce_temperature >= "
            f"{COLDEST}, got {epochs} and {tau}"
        )


def warn_unused(cfg: DictConfig, defaults: DictConfig) -> None:
    """One line about keys of the host that are set and without effect on pre-training.

    Args:
        cfg: a complete config.
        defaults: the schema's.
    """
    # the host's linear model, tuned from scratch, does heed this one
    heeded = ("optimizer.layer_decay",) if cfg.method == "supervised" else ()
    found = []
    for key, instead in UNUSED.items():
        value, usual = OmegaConf.select(cfg, key), OmegaConf.select(defaults, key)
        # the host's files spell null as the word
        if key not in heeded and value not in (usual, "None"):
            found.append(f"{key}={value} ({instead})")
    if found:
        log.warning("config: no effect in `ressl pretrain`: %s", "; ".join(found))


def _check_fraction(fraction: float) -> None:
    if fraction != -1 and not 0 < fraction <= 1:
        raise UserError(
            f"config: data.fraction={fraction}: a share above 0 and up to 1, or -1 for all the data"
        )


def _check_area(area: list[float] | None) -> None:
    """data.linear_area: null, or two fractions of an image's area.

    Raises:
        UserError: something else.
    """
    if area is not None and (len(area) != 2 or not 0 < area[0] <= area[1] <= 1):
        raise UserError(
            f"config: data.linear_area={list(area)}: [least, most] with 0 < least <= most <= 1"
        )


def _one_of(cfg, key, *choices):
    value = OmegaConf.select(cfg, key)
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"config: {key}={value!r}: one of {', '.join(map(str, choices))}{hint}")


def _between(cfg, key, least, most=None):
    value = OmegaConf.select(cfg, key)
    if value is None:  # left to its reader
        return
    bounds = f">= {least}" + (f" and <= {most}" if most is not None else "")
    if not settings.is_number(value) or value < least or (most is not None and value > most):
        raise UserError(f"config: {key}={value}: must be {bounds}")
