"""ReSSL (Relational Self-Supervised Learning with Weak Augmentation) for solo-learn.

The loss, the memory and the batch norm need PyTorch alone, and serve any training loop:

    from ressl_plugin import FeatureQueue, RelationalLoss

`Views` needs torchvision besides; a whole run is trained by `pretrain`, opened by `open_run`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; at run time see _WHERE
    from ressl_plugin.cli.api import Run, open_run, pretrain
    from ressl_plugin.method.batchnorm import (
        GroupBatchNorm1d,
        GroupBatchNorm2d,
        GroupBatchNorm3d,
        to_groups,
    )
    from ressl_plugin.method.infonce import info_nce
    from ressl_plugin.method.loss import RelationalLoss, relational_loss
    from ressl_plugin.method.queue import FeatureQueue
    from ressl_plugin.method.registry import register
    from ressl_plugin.views.batched import Views

__version__ = "0.2.0"
__all__ = [
    "FeatureQueue",
    "GroupBatchNorm1d",
    "GroupBatchNorm2d",
    "GroupBatchNorm3d",
    "RelationalLoss",
    "Run",
    "Views",
    "__version__",
    "info_nce",
    "open_run",
    "pretrain",
    "register",
    "relational_loss",
    "to_groups",
]

# Looked up at first use: what needs PyTorch alone is not to import more.
_WHERE = {
    "cli.api": ("Run", "open_run", "pretrain"),
    "method.batchnorm": ("GroupBatchNorm1d", "GroupBatchNorm2d", "GroupBatchNorm3d", "to_groups"),
    "method.infonce": ("info_nce",),
    "method.loss": ("RelationalLoss", "relational_loss"),
    "method.queue": ("FeatureQueue",),
    "method.registry": ("register",),
    "views.batched": ("Views",),
}


def __getattr__(name: str):
    for module, names in _WHERE.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
