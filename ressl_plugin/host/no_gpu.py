"""The host's own scripts on a machine without a GPU, which its configs do not have in mind.

`ressl pretrain` asks devices.py for the same; here Lightning itself is asked by main_pretrain.py.
"""

import logging

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

log = logging.getLogger(__name__)


def mend() -> None:
    """`devices: [0]` is one process on the processor, where Lightning wants a number; and
    `sync_batchnorm: true`, which only GPUs can do, is off. Doing it again changes nothing."""
    if getattr(CPUAccelerator, "_takes_lists", False):
        return
    parse, apply = CPUAccelerator.parse_devices, TorchSyncBatchNorm.apply

    def parse_devices(devices):
        return parse(len(devices) if isinstance(devices, list) and devices else devices)

    def only_on_gpus(self, model):
        if torch.cuda.is_available():
            return apply(self, model)
        log.warning("sync_batchnorm=true: needs GPUs, off on the processor")
        return model

    CPUAccelerator.parse_devices = staticmethod(parse_devices)
    CPUAccelerator._takes_lists = True
    TorchSyncBatchNorm.apply = only_on_gpus
