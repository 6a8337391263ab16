"""solo-learn >= 1.0.6 (the GitHub main branch), whose configs the plugin uses everywhere.

Its methods train unmodified; see `patches` for the little that is wrong in both generations.
"""

import logging

from solo.data import pretrain_dataloader as _pretrain
from solo.methods import METHODS
from solo.methods.base import BaseMethod, BaseMomentumMethod
from solo.methods.linear import LinearModel as _HostLinear
from solo.methods.ressl import ReSSL as _HostReSSL
from solo.utils.knn import WeightedKNNClassifier as KNN
from solo.utils.positional_encodings import PositionalEncoding1D

from ressl_plugin.host import defaults, patches, pipelines
from ressl_plugin.host.patches import features_dim
from ressl_plugin.host.pipelines import MEAN_STD

__all__ = [
    "BACKBONES",
    "KNN",
    "MEAN_STD",
    "METHODS",
    "LinearModel",
    "MomentumBase",
    "ReSSL",
    "build_backbone",
    "build_method",
    "features_dim",
    "n_crops",
    "register_backbone",
    "view_transform",
]


def _forget_positional_encodings() -> None:
    """All4One's checkpoint has the codes that it makes at the first batch; a new one has none."""
    host = PositionalEncoding1D.__init__

    def __init__(self, channels):
        host(self, channels)
        self.register_buffer("cached_penc", None, persistent=False)

    PositionalEncoding1D.__init__ = __init__


patches.apply()
_forget_positional_encodings()
BACKBONES = BaseMethod._BACKBONES
# Said on the root logger at every construction of a method, of any run whatever.
logging.getLogger().addFilter(lambda r: not str(r.msg).startswith("Using scheduler_interval="))


class MomentumBase(BaseMomentumMethod):
    """The host's momentum base class; `cfg` (main's schema) may leave out what has a default.

    Filled in place, as the host does.
    """

    def __init__(self, cfg):
        cfg = defaults.fill(defaults.as_config(cfg))
        defaults.choose("backbone.name", cfg.backbone.name, BACKBONES)
        super().__init__(cfg)
        self.register_load_state_dict_pre_hook(patches.rename_old_keys)


class ReSSL(_HostReSSL):
    """The host's own ReSSL, whatever METHODS["ressl"] has become."""

    def __init__(self, cfg):
        super().__init__(_complete(cfg, "ressl"))


def _complete(cfg, name: str):
    cfg = defaults.fill(defaults.copy_of(cfg))
    defaults.choose("backbone.name", cfg.backbone.name, BACKBONES)
    values = {"proj_hidden_dim": 2048, **defaults.METHOD.get(name, {})}
    return defaults.fill_method(cfg, values)


def build_method(cfg):
    """The registered method `cfg.method`, from a config in main's schema; `cfg` is not changed.

    The learning rates are taken as they are: no scaling to the batch.

    Raises:
        UserError: unknown method or backbone, or no class count.
    """
    cfg = defaults.copy_of(cfg)
    cls = defaults.choose("method", cfg.get("method"), defaults.trainable(METHODS))
    if not cls.__module__.startswith("solo."):
        return cls(cfg)
    return cls(_complete(cfg, defaults.host_name(cfg.method)))


def build_backbone(cfg):
    """Bare backbone of `cfg.backbone` (N, 3, H, W) -> (N, d), as the host would build it."""
    cfg = defaults.fill(defaults.copy_of(cfg))
    table = BACKBONES
    return patches.bare_backbone(defaults.choose("backbone.name", cfg.backbone.name, table), cfg)


def register_backbone(name: str, factory) -> None:
    """Let configs name `factory(method, **kwargs)`, a module with `num_features`.

    A name that begins with "resnet" is taken for a torchvision ResNet by the host.
    """
    BACKBONES[name] = factory


class LinearModel(_HostLinear):
    """The host's linear (or, with `finetune: true`, fine-tuning) model on a backbone."""

    def __init__(self, backbone, cfg, **kwargs):
        super().__init__(backbone, defaults.fill(defaults.copy_of(cfg), backbone=False), **kwargs)


def view_transform(dataset: str, augmentation):
    """The host's pipeline of one view: PIL image -> float tensor (3, H, W), normalised.

    `augmentation` is an entry of the config's list; what it does not name is not applied.
    `mean`/`std` hold for any data set when given, and so do the additions `gaussian_blur.sigma`,
    `interpolation` and `rrc.ratio`.
    """
    augmentation = pipelines.complete(augmentation)
    host = _pretrain.build_transform_pipeline(dataset, augmentation)
    return pipelines.edit(host, augmentation, dataset, _pretrain.GaussianBlur)


def n_crops(pairs):
    """[(transform, number of crops), ...] -> PIL image -> list of tensors, in that order."""
    transforms, counts = zip(*pairs)
    return _pretrain.prepare_n_crop_transform(list(transforms), list(counts))
