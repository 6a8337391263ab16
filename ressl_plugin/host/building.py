"""Methods and backbones from one config in the main branch's schema, with either generation."""

from torch import nn

from ressl_plugin import host
from ressl_plugin.host import defaults


def build_method(cfg):
    """The registered method `cfg.method`, from a config in main's schema.

    The learning rates are taken as they are: no scaling to the batch. `cfg` is not changed, but by
    a method that is not the host's and fills it in.

    Raises:
        UserError: unknown method or backbone, or no class count.
    """
    cfg = defaults.as_config(cfg)
    methods = {name: cls for name, cls in host.METHODS.items() if name not in ("base", "linear")}
    cls = defaults.choose("method", cfg.get("method"), methods)
    return host.construct(cls, cfg) if cls.__module__.startswith("solo.") else cls(cfg)


def build_backbone(cfg) -> nn.Module:
    """Bare backbone of `cfg.backbone` (N, 3, H, W) -> (N, d), as the host builds it in a method.

    No last layer; its CIFAR stem for the data sets cifar10 and cifar100.

    Raises:
        UserError: unknown backbone.
    """
    cfg = defaults.as_config(cfg)
    name = cfg.backbone.get("name")
    factory = defaults.choose("backbone.name", name, host.BACKBONES)
    backbone = factory(cfg.get("method"), **(cfg.backbone.get("kwargs") or {}))
    if name.startswith("resnet"):
        backbone.fc = nn.Identity()
        if cfg.data.get("dataset") in ("cifar10", "cifar100"):
            backbone.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
            backbone.maxpool = nn.Identity()
    return backbone


def features_dim(backbone: nn.Module) -> int:
    """Length of the feature vector: `inplanes` of a ResNet, else `num_features`."""
    return backbone.inplanes if hasattr(backbone, "inplanes") else backbone.num_features


def register_backbone(name: str, factory) -> None:
    """Let configs name `factory(method, **kwargs)`, a module with `num_features`.

    A name that begins with "resnet" is taken for a torchvision ResNet by the host.
    """
    host.BACKBONES[name] = factory
