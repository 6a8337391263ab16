"""solo-learn 1.0.2 (the only release on PyPI) behind the main branch's configs and names.

1.0.2's methods take keyword arguments, call their networks encoder and momentum_encoder, and
schedule by the epoch. `Adapter` is mixed into each of them: constructed from a config, attributes
and state-dict keys of the main branch, its learning rate schedule and weight decay groups.
"""

# ruff: noqa: E402  the host is imported after what it needs is there
from argparse import ArgumentParser
from functools import cache, partial
from inspect import signature

import torch
from omegaconf import DictConfig, OmegaConf

from ressl_plugin.host.pypi import shims

shims.before_import()

from solo.methods import METHODS
from solo.methods.base import BaseMomentumMethod
from solo.utils import backbones as _backbones
from solo.utils import pretrain_dataloader as DATALOADER
from solo.utils.knn import WeightedKNNClassifier as KNN
from torchvision import transforms
from torchvision.models import resnet18, resnet50

from ressl_plugin.host import defaults
from ressl_plugin.host import patches as common_patches
from ressl_plugin.host.pypi import patches

common_patches.apply()
patches.apply()

from ressl_plugin.host.pypi.linear import LinearModel
from ressl_plugin.host.pypi.optim import configure, training_arguments


def _call(factory, method, **kwargs):
    return factory(**kwargs)


def _without_method(factory):
    """1.0.2's factories do not take the method's name, the main branch's do."""
    return partial(_call, factory)


BACKBONES = {
    "resnet18": _without_method(resnet18),
    "resnet50": _without_method(resnet50),
    **{
        f"{family}_{size}": _without_method(getattr(_backbones, f"{family}_{size}"))
        for family in ("vit", "swin")
        for size in ("tiny", "small", "base", "large")
    },
}
RENAMED = {"encoder": "backbone", "momentum_encoder": "momentum_backbone"}


def keyword_arguments(cfg, cls) -> dict:
    """What `cls.__init__` of 1.0.2 takes, from a filled config in main's schema."""
    is_resnet = cfg.backbone.name.startswith("resnet")
    arguments = {
        # Only "is it a ResNet" matters of 1.0.2's fixed table: `Adapter` sets the factory.
        "encoder": "resnet18" if is_resnet else "vit_tiny",
        "backbone_args": {
            **OmegaConf.to_container(cfg.backbone.kwargs, resolve=True),
            "cifar": is_resnet and cfg.data.dataset in ("cifar10", "cifar100"),
        },
        **training_arguments(cfg),
        "num_large_crops": cfg.data.num_large_crops,
        "num_small_crops": cfg.data.num_small_crops,
        "accumulate_grad_batches": cfg.accumulate_grad_batches,
        "classifier_lr": cfg.optimizer.classifier_lr,
        "min_lr": cfg.scheduler.min_lr,
        "warmup_start_lr": cfg.scheduler.warmup_start_lr,
        "warmup_epochs": cfg.scheduler.warmup_epochs,
        "knn_eval": False,
    }
    if issubclass(cls, BaseMomentumMethod):
        arguments["base_tau_momentum"] = cfg.momentum.base_tau
        arguments["final_tau_momentum"] = cfg.momentum.final_tau
        arguments["momentum_classifier"] = cfg.momentum.classifier
    method_kwargs = OmegaConf.to_container(cfg.method_kwargs, resolve=True)
    own = own_parameters(cls)
    arguments.update({key: value for key, value in method_kwargs.items() if key in own})
    return arguments


def own_parameters(cls) -> set:
    """Names of the keyword arguments that a method of 1.0.2 adds to the base class's."""
    return set(signature(cls.__init__).parameters) - {"self", "args", "kwargs"}


def method_defaults(cls) -> dict:
    """The defaults of a method's own arguments, out of its argument parser."""
    parser = cls.add_model_specific_args(ArgumentParser())
    own = own_parameters(cls)
    return {a.dest: a.default for a in parser._actions if a.dest in own}


class Adapter:
    """Mixin in front of a method of 1.0.2: main's constructor, names and optimizers."""

    def __init__(self, cfg, host_class):
        # Plain attributes first: torch's modules take no other before their own __init__.
        object.__setattr__(self, "_factory", BACKBONES[cfg.backbone.name])
        object.__setattr__(self, "_method_name", cfg.method)
        object.__setattr__(self, "no_channel_last", cfg.performance.disable_channel_last)
        super().__init__(**keyword_arguments(cfg, host_class))
        self.cfg = cfg
        self.backbone_name = cfg.backbone.name
        self.exclude_bias_n_norm_wd = cfg.optimizer.exclude_bias_n_norm_wd
        self.scheduler_interval = cfg.scheduler.interval
        # 1.0.2 fixes the euclidean distance; so the metric is made here.
        self.knn_eval, self.knn_k = cfg.knn_eval.enabled, cfg.knn_eval.k
        if self.knn_eval:
            self.knn = KNN(k=self.knn_k, distance_fx=cfg.knn_eval.distance_func)
        self.validation_step_outputs = []
        self.register_load_state_dict_pre_hook(common_patches.rename_old_keys)

    def __setattr__(self, name, value):
        if name == "base_model":
            value = partial(self._factory, self._method_name)
        super().__setattr__(RENAMED.get(name, name), value)

    def __getattr__(self, name):
        return super().__getattr__(RENAMED.get(name, name))

    @property
    def learnable_params(self):
        groups = super().learnable_params
        for group in groups:
            if "name" in group:
                group["name"] = RENAMED.get(group["name"], group["name"])
        return groups

    def configure_optimizers(self):
        return configure(self, self.learnable_params)

    def _to_layout(self, images):
        return images if self.no_channel_last else images.to(memory_format=torch.channels_last)

    def base_forward(self, X):
        return super().base_forward(self._to_layout(X))

    def base_momentum_forward(self, X):
        return super().base_momentum_forward(self._to_layout(X))


class MomentumBase(Adapter, BaseMomentumMethod):
    """1.0.2's momentum base class with the constructor and the hooks of the main branch's.

    `cfg` is filled in place, as main does. Subclasses override `forward` and `momentum_forward`,
    each taking (N, 3, H, W) and giving a dict with "feats" (N, d), the first also "logits".
    """

    def __init__(self, cfg):
        super().__init__(defaults.fill(defaults.as_config(cfg)), BaseMomentumMethod)

    def forward(self, X):
        feats = self.backbone(self._to_layout(X))
        return {"logits": self.classifier(feats.detach()), "feats": feats}

    @torch.no_grad()
    def momentum_forward(self, X):
        return {"feats": self.momentum_backbone(self._to_layout(X))}

    def base_forward(self, X):
        return self(X)

    def base_momentum_forward(self, X):
        return self.momentum_forward(X)


@cache
def adapted(cls):
    """The method `cls` of 1.0.2 as a class constructed from a config in main's schema."""

    def __init__(self, cfg):
        cfg = defaults.fill(defaults.copy_of(cfg))
        values = dict(method_defaults(cls))
        key = "warmup_teacher_temperature_epochs"  # 50, which DINO cannot have in a shorter run
        if key in values:
            values[key] = min(values[key], cfg.max_epochs)
        cfg = defaults.fill_method(cfg, values)
        Adapter.__init__(self, cfg, cls)

    return type(cls.__name__, (Adapter, cls), {"__init__": __init__, "__doc__": cls.__doc__})


def __getattr__(name: str):
    """The adapted class of the host's method of this name: pickle looks classes up by it."""
    for cls in METHODS.values():
        if cls.__name__ == name and cls.__module__.startswith("solo."):
            return adapted(cls)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def construct(cls, cfg: DictConfig):
    """The host's method `cls` from a config."""
    return adapted(cls)(cfg)


def pipeline(augmentation: DictConfig) -> transforms.Compose:
    """The host's pipeline of one view; equalization, and no crop (`rrc.enabled: false`, which
    resizes the shorter side), are edited in, as the main branch has them."""
    aug = augmentation
    host = DATALOADER.prepare_transform(
        "custom",
        brightness=aug.color_jitter.brightness,
        contrast=aug.color_jitter.contrast,
        saturation=aug.color_jitter.saturation,
        hue=aug.color_jitter.hue,
        color_jitter_prob=aug.color_jitter.prob,
        gray_scale_prob=aug.grayscale.prob,
        horizontal_flip_prob=aug.horizontal_flip.prob,
        gaussian_prob=aug.gaussian_blur.prob,
        solarization_prob=aug.solarization.prob,
        min_scale=aug.rrc.crop_min_scale,
        max_scale=aug.rrc.crop_max_scale,
        crop_size=aug.crop_size,
    ).transform
    *steps, to_tensor, normalize = host.transforms
    normalize.std = (0.229, 0.224, 0.225)  # ImageNet's, of which 1.0.2 has the first as 0.228
    if not aug.rrc.enabled:
        bicubic = transforms.InterpolationMode.BICUBIC
        steps[0] = transforms.Resize(aug.crop_size, interpolation=bicubic)
    # the flip is the last of them
    steps.insert(-1, transforms.RandomEqualize(aug.equalization.prob))
    # A step that is never applied still costs its random number, and time.
    steps = [step for step in steps if getattr(step, "p", 1) != 0]
    host.transforms = [*steps, to_tensor, normalize]
    return host
