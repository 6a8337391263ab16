"""What configs assume of the machine, in the host's own scripts, where Lightning itself is asked.

Its configs do not have a machine without a GPU in mind, ours leave the precision to the machine.
`ressl pretrain` has train/settling.py and utils/devices.py for the same.
"""

import functools
import logging

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

from ressl_plugin.utils.precision import fastest

log = logging.getLogger(__name__)


def mend() -> None:
    """`devices: [0]` is one process on the processor, where Lightning wants a number;
    `sync_batchnorm: true`, which only GPUs can do, is off; and `precision: auto` is what the
    machine has. Doing it again changes nothing."""
    if getattr(CPUAccelerator, "_takes_lists", False):
        return
    parse, apply = CPUAccelerator.parse_devices, TorchSyncBatchNorm.apply
    make = Trainer.__init__

    def parse_devices(devices):
        return parse(len(devices) if isinstance(devices, list) and devices else devices)

    def only_on_gpus(self, model):
        if torch.cuda.is_available():
            return apply(self, model)
        log.warning("sync_batchnorm=true: needs GPUs, off on the processor")
        return model

    @functools.wraps(make)  # the scripts read its arguments
    def with_precision(self, *args, **kwargs):
        if kwargs.get("precision") == "auto":
            gpu = torch.cuda.is_available() and kwargs.get("accelerator") != "cpu"
            kwargs["precision"] = fastest(gpu)
            log.info("precision=auto: %s", kwargs["precision"])
        make(self, *args, **kwargs)

    Trainer.__init__ = with_precision
    CPUAccelerator.parse_devices = staticmethod(parse_devices)
    CPUAccelerator._takes_lists = True
    TorchSyncBatchNorm.apply = only_on_gpus
