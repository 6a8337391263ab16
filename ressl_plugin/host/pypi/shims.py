"""Modules that solo-learn 1.0.2 (2021) imports and that are gone, supplied before its import."""

import sys
import types
import warnings

import lightning.pytorch as pl


def supply_lightning() -> None:
    """`pytorch_lightning` and what is in it are the modules of `lightning.pytorch` themselves.

    1.0.2 derives from pytorch_lightning.LightningModule. Where that package is installed it is a
    second copy of the same code, whose classes `lightning.pytorch.Trainer` refuses; where it is
    not, the import fails. So there is one LightningModule, as on the main branch.
    """
    old, new = "pytorch_lightning", pl.__name__
    for name in [name for name in sys.modules if name.partition(".")[0] == old]:
        del sys.modules[name]
    for name, module in list(sys.modules.items()):
        if name == new or name.startswith(f"{new}."):
            sys.modules[old + name.removeprefix(new)] = module


def supply_bolts() -> None:
    """`pl_bolts` no longer installs; the one scheduler imported of it has its place in `optim`."""
    names = ("pl_bolts", "pl_bolts.optimizers", "pl_bolts.optimizers.lr_scheduler")
    sys.modules.update({name: types.ModuleType(name) for name in names})
    sys.modules[names[-1]].LinearWarmupCosineAnnealingLR = None


def supply_distutils() -> None:
    """DINO's argument parser, asked for its defaults alone, names a type of distutils, which left
    Python in 3.12."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import distutils.util
        except ImportError:
            distutils, util = types.ModuleType("distutils"), types.ModuleType("distutils.util")
            distutils.util, util.strtobool = util, bool
            sys.modules.update({"distutils": distutils, "distutils.util": util})


def before_import() -> None:
    supply_lightning()
    supply_bolts()
    supply_distutils()
