"""Modules that solo-learn 1.0.2 (2021) imports and that are gone, supplied before its import."""

import importlib.abc
import importlib.util
import math
import sys
import types
import warnings
from contextlib import suppress

import lightning.pytorch as pl
from torch.optim.lr_scheduler import LRScheduler

ALIAS = "pytorch_lightning"


class WarmupCosine(LRScheduler):
    """Linear warm-up, then one cosine down to `eta_min`, in closed form.

    Step t of `warmup_epochs` = w and `max_epochs` = T: warmup_start_lr + t (lr - warmup_start_lr)
    / (w - 1) while t < w, then eta_min + (lr - eta_min) (1 + cos(pi (t - w) / (T - w))) / 2.
    The unit of w and T is whatever `step` is called for. The main branch computes the same
    recursively; where w is no whole number its recursion overshoots lr, this does not.
    """

    def __init__(
        self,
        optimizer,
        warmup_epochs,
        max_epochs,
        warmup_start_lr=0.0,
        eta_min=0.0,
        last_epoch=-1,
    ):
        self.warmup_epochs = warmup_epochs
        self.max_epochs = max_epochs
        self.warmup_start_lr = warmup_start_lr
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self):
        step, warmup = self.last_epoch, self.warmup_epochs
        if step < warmup:
            part = min(1.0, step / max(warmup - 1, 1e-8))
            start = self.warmup_start_lr
            return [start + part * (lr - start) for lr in self.base_lrs]
        part = (step - warmup) / max(self.max_epochs - warmup, 1e-8)
        height = (1 + math.cos(math.pi * part)) / 2
        return [self.eta_min + height * (lr - self.eta_min) for lr in self.base_lrs]


class _LightningAlias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import pytorch_lightning.x` with the module `lightning.pytorch.x` itself.

    1.0.2 derives from pytorch_lightning.LightningModule. Where that package is installed it is a
    second copy of the same code, whose classes `lightning.pytorch.Trainer` refuses; where it is
    not, the import fails. With the alias there is one LightningModule, as on the main branch.
    """

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != ALIAS:
            return None
        real = "lightning.pytorch" + name[len(ALIAS) :]
        if importlib.util.find_spec(real) is None:
            return None
        return importlib.util.spec_from_loader(name, self, origin=real)

    def create_module(self, spec):
        module = importlib.import_module(spec.origin)
        # The import system is about to overwrite it.
        self._own_spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._own_spec


def supply_lightning() -> None:
    """See `_LightningAlias`; a copy of pytorch_lightning loaded earlier makes way."""
    if sys.modules.get(ALIAS) is pl:
        return
    for name in [name for name in sys.modules if name.partition(".")[0] == ALIAS]:
        del sys.modules[name]
    sys.meta_path.insert(0, _LightningAlias())
    sys.modules[ALIAS] = pl


def supply_bolts() -> None:
    """`pl_bolts` is imported for one scheduler; the package no longer installs."""
    names = ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler")
    modules = [types.ModuleType(name) for name in names]
    modules[2].LinearWarmupCosineAnnealingLR = WarmupCosine
    modules[0].optimizers, modules[1].lr_scheduler = modules[1:]
    modules[0].__path__ = modules[1].__path__ = []
    sys.modules.update(zip(names, modules))


def supply_distutils() -> None:
    """DINO's argument parser reads booleans with distutils, which left Python in 3.12."""
    with warnings.catch_warnings(), suppress(ImportError):
        warnings.simplefilter("ignore")
        import distutils.util  # noqa: F401

        return
    module, util = types.ModuleType("distutils"), types.ModuleType("distutils.util")
    util.strtobool = lambda text: int(str(text).lower() in ("y", "yes", "t", "true", "on", "1"))
    module.util = util
    sys.modules.update({"distutils": module, "distutils.util": util})


def before_import() -> None:
    supply_lightning()
    supply_bolts()
    supply_distutils()
