"""solo-learn >= 1.0.6 (the GitHub main branch), whose configs the plugin uses everywhere.

Its methods train unmodified; see `patches` for the little that is wrong in both generations.
"""

import logging

from omegaconf import DictConfig
from solo.data import pretrain_dataloader as DATALOADER
from solo.methods import METHODS  # noqa: F401
from solo.methods.base import BaseMethod, BaseMomentumMethod
from solo.methods.linear import LinearModel as _HostLinear
from solo.utils.knn import WeightedKNNClassifier as KNN  # noqa: F401
from solo.utils.positional_encodings import PositionalEncoding1D

from ressl_plugin.host import defaults, patches

BACKBONES = BaseMethod._BACKBONES


def _forget_positional_encodings() -> None:
    """All4One's checkpoint has the codes that it makes at the first batch; a new one has none."""
    host = PositionalEncoding1D.__init__

    def __init__(self, channels):
        host(self, channels)
        self.register_buffer("cached_penc", None, persistent=False)

    PositionalEncoding1D.__init__ = __init__


patches.apply()
_forget_positional_encodings()
# Said on the root logger at every construction of a method, of any run whatever.
logging.getLogger().addFilter(lambda r: not str(r.msg).startswith("Using scheduler_interval="))


class MomentumBase(BaseMomentumMethod):
    """The host's momentum base class; `cfg` (main's schema) may leave out what has a default.

    Filled in place, as the host does.
    """

    def __init__(self, cfg):
        super().__init__(defaults.fill(defaults.as_config(cfg)))
        self.register_load_state_dict_pre_hook(patches.rename_old_keys)


def construct(cls, cfg: DictConfig):
    """The host's method `cls` from a config."""
    method = cfg.method.removesuffix("_host")
    values = {"proj_hidden_dim": 2048, **defaults.METHOD.get(method, {})}
    return cls(defaults.fill_method(defaults.fill(defaults.copy_of(cfg)), values))


class LinearModel(_HostLinear):
    """The host's linear (or, with `finetune: true`, fine-tuning) model on a backbone."""

    def __init__(self, backbone, cfg, **kwargs):
        super().__init__(backbone, defaults.fill(defaults.copy_of(cfg), backbone=False), **kwargs)


def pipeline(augmentation: DictConfig):
    """The host's pipeline of one view, normalised as ImageNet."""
    return DATALOADER.build_transform_pipeline("custom", augmentation)
