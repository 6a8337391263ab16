"""The devices, strategy and statistics that a config asks for, as far as this machine has them."""

from __future__ import annotations

import logging
import re

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.launch import check_launch

log = logging.getLogger(__name__)

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
MOST_PROCESSES = 256  # on the processor: beyond, it is a slip of the finger


def runnable(cfg: DictConfig) -> DictConfig:
    """The config with devices, strategy and batch norm that this machine can have.

    Raises:
        UserError: a GPU is asked for and none is there, devices that are not there, settings that
            would undo each other.
    """
    cfg = OmegaConf.create(OmegaConf.to_container(cfg))
    check_accelerator(cfg.accelerator)
    gpus = torch.cuda.device_count()
    wants_gpu = cfg.accelerator in ("gpu", "cuda") or (cfg.accelerator == "auto" and gpus)
    if wants_gpu and not gpus:
        raise UserError(
            f"config: accelerator={cfg.accelerator}: no CUDA device is visible; "
            "accelerator=cpu runs on the processor"
        )
    count = device_count(cfg.devices, gpus if wants_gpu else 1)
    if wants_gpu:
        _check_gpus(cfg.devices, count, gpus)
    else:
        if count > MOST_PROCESSES:
            raise UserError(
                f"config: devices={count}: at most {MOST_PROCESSES} processes on the processor"
            )
        check_processor(cfg.devices)
        cfg.accelerator, cfg.devices = "cpu", count
    _set_statistics(cfg, wants_gpu, count * cfg.num_nodes)
    check_launch(count, cfg.num_nodes)
    alone = count * cfg.num_nodes == 1
    given = cfg.strategy or "auto"
    if given in ("auto", "ddp"):  # of several processes Lightning's auto is its own DDP, not ours
        given = "auto" if alone else "ddp"
    cfg.strategy = given
    return cfg


def check_accelerator(name: str) -> None:
    """Refuse one that is not supported."""
    if name not in ACCELERATORS:
        raise UserError(
            f"config: accelerator={name!r}: one of {', '.join(ACCELERATORS)}; no other is supported"
        )


def check_processor(devices) -> None:
    """A list of devices is a number of processes on the processor: its first ones, each once."""
    listed = _listed(devices)
    if isinstance(listed, list) and sorted(listed) != list(range(len(listed))):
        raise UserError(
            f"config: devices={devices}: the processor has no such device; devices=1 is one "
            "process on it"
        )


def _set_statistics(cfg: DictConfig, wants_gpu: bool, processes: int) -> None:
    """Whether batch norm's statistics are those of all processes, which only GPUs can do."""
    norm = cfg.batchnorm
    if norm.mode == "shuffle" and processes == 1 and cfg.method == "ressl":
        log.warning(
            "batchnorm.mode=shuffle: one process has nobody to exchange images with; "
            "batchnorm.mode=group batchnorm.groups=8 batchnorm.permute=true does it within a batch"
        )
    if not wants_gpu:
        for key, wanted in (("sync_batchnorm=true", cfg.sync_batchnorm),
                            ("batchnorm.mode=sync", norm.mode == "sync")):  # fmt: skip
            if wanted:
                log.warning("%s: needs GPUs, off on the processor", key)
        cfg.sync_batchnorm = False
        return
    # Lightning replaces every batch norm layer, those with groups of their own among them.
    grouped = cfg.method == "ressl" and norm.mode == "group" and norm.groups > 1
    if cfg.sync_batchnorm and grouped and processes > 1:
        raise UserError(
            f"config: sync_batchnorm=true would undo batchnorm.groups={norm.groups}: "
            "sync_batchnorm=false, or batchnorm.mode=sync for statistics over all devices"
        )
    if norm.mode == "sync":
        cfg.sync_batchnorm = True


def device_count(devices, available: int) -> int:
    """How many devices a `devices` setting means: 2, [0, 1], "0,1", auto or -1.

    Raises:
        UserError: something else.
    """
    if devices in ("auto", -1, "-1"):
        return max(1, available)
    listed = _listed(devices)
    count = listed if isinstance(listed, int) else len(listed)
    if count < 1:
        raise UserError(f"config: devices={devices!r}: a number, a list of numbers, or auto")
    return count


def _listed(devices) -> int | list[int]:
    """A number of devices or their indices; 0 for what is neither."""
    if isinstance(devices, str) and re.fullmatch(r" *\d{1,9}( *, *\d{1,9})*,? *", devices):
        # "2" are two devices and "2," is the third, as Lightning reads them
        numbers = [int(number) for number in devices.split(",") if number.strip()]
        devices = numbers if "," in devices else numbers[0]
    if isinstance(devices, (list, tuple, ListConfig)):
        return list(devices) if all(type(i) is int for i in devices) else 0
    return devices if type(devices) is int else 0


def _check_gpus(devices, count: int, gpus: int) -> None:
    listed = _listed(devices)
    if count > gpus:
        raise UserError(f"config: devices={devices}: this machine has {gpus} GPU(s)")
    if isinstance(listed, list) and (not set(listed) <= set(range(gpus)) or count > len({*listed})):
        raise UserError(
            f"config: devices={devices}: this machine's GPUs are 0 to {gpus - 1}, each once at most"
        )
