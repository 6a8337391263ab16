"""ReSSL (Relational Self-Supervised Learning with Weak Augmentation) for solo-learn.

The loss and the memory need PyTorch alone, and serve any training loop:

    from ressl_plugin import FeatureQueue, relational_loss
"""

import importlib

__version__ = "0.2.0"

# Looked up at first use: PyTorch alone is to be enough for the first three.
_WHERE = {
    "relational_loss": "ressl_plugin.method.loss",
    "RelationalLoss": "ressl_plugin.method.loss",
    "FeatureQueue": "ressl_plugin.method.queue",
    "register": "ressl_plugin.method.registry",
    "pretrain": "ressl_plugin.train.pretrain",
    "open_run": "ressl_plugin.run",
}
__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
