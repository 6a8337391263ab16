"""The encoder F: the host's backbones, or timm's, with the stem that small images need."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable
from functools import partial

import torch
from omegaconf import OmegaConf
from torch import nn

from ressl_plugin import host
from ressl_plugin.config.kinds import WIDEST
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import recipe

TIMM = "timm:"
LONGEST = 300  # characters of what a library says
# arguments of constructors that would fetch or unpickle something
OF_FILES = {"weights", "pretrained", "checkpoint_path", "pretrained_cfg", "cache_dir"}


def build(cfg) -> nn.Module:
    """The bare encoder of a config: (N, 3, H, W) images to (N, d) average-pooled features.

    Raises:
        UserError: unknown backbone (with the nearest name), a stem on something not a ResNet.
    """
    prepare(cfg)
    backbone = host.build_backbone(cfg)
    set_stem(backbone, cfg.backbone.get("stem", "auto"))
    return backbone


def prepare(cfg) -> None:
    """For the host to build it: make `timm:<model>` known, and build it with its kwargs once.

    Raises:
        UserError: timm has no such model; it does not take the kwargs, or they would load a file.
    """
    if cfg.backbone.name.startswith(TIMM):
        _offer(cfg.backbone.name)
    kwargs = OmegaConf.to_container(OmegaConf.create(cfg.backbone.get("kwargs") or {}))
    if not kwargs:
        return
    if bad := sorted(OF_FILES & kwargs.keys()):
        raise UserError(f"config: backbone.kwargs: {', '.join(bad)}: not to be given in a config")
    _check_sizes(kwargs, "config: backbone.kwargs")
    factory = host.BACKBONES.get(cfg.backbone.name)
    if factory is None:  # whoever builds it says so
        return
    fault = (
        f"config: backbone.kwargs={kwargs}: {cfg.backbone.name} does not take them, "
        "~backbone.kwargs drops them"
    )
    with torch.random.fork_rng(devices=[]):
        with_arguments(partial(factory, cfg.get("method")), copy.deepcopy(kwargs), fault)


def with_arguments(make: Callable[..., nn.Module], kwargs: dict, fault: str) -> nn.Module:
    """`make(**kwargs)`, a network of a library that alone can judge its arguments; `fault` opens
    the message where it is made without them and not with them."""
    try:
        return make(**kwargs)
    except Exception as error:
        # Nothing narrower: of an unexpected argument the libraries' constructors make an
        # AssertionError, a KeyError, a ZeroDivisionError, whatever comes first. Nor can it be a bug
        # of this package: that fails without them as well, and comes out of this call.
        make()
        text = " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST]
        raise UserError(f"{fault} ({text})") from error


def _check_sizes(node, key: str) -> None:
    """Beyond, a number is a slip of the finger, and costs all memory before anything is said."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list)):
            _check_sizes(value, f"{key}.{name}")
        elif isinstance(value, (int, float)) and not abs(value) <= WIDEST:
            raise UserError(f"{key}.{name}: must be a number up to {WIDEST}")


def _offer(name: str) -> None:
    import timm

    model = name.removeprefix(TIMM)
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), 3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise UserError(f"config: backbone.name={name}: timm has no such model{hint}")
    # not a closure: methods keep their backbone's factory, and are pickled
    host.BACKBONES[name] = partial(_create_timm, model)


def _create_timm(model: str, method: str | None = None, **kwargs) -> nn.Module:
    import timm

    network = timm.create_model(model, pretrained=False, num_classes=0, **kwargs)
    # MobileNetV3 and its like have one more layer behind the pooling than num_features tells
    network.num_features = getattr(network, "head_hidden_size", None) or network.num_features
    return network


def check_input(backbone: nn.Module, cfg) -> None:
    """Views must have the size that a transformer was made for; convolutions take any."""
    embed = getattr(backbone, "patch_embed", None)
    strict = getattr(embed, "strict_img_size", False)
    made_for = embed.img_size if strict else None
    sizes = sorted({entry["crop_size"] for entry in recipe.entries(cfg)}, reverse=True)
    if not made_for or all((size, size) == tuple(made_for) for size in sizes):
        return
    right = f"img_size={sizes[0]}" if len(sizes) == 1 else "dynamic_img_size=true"
    raise UserError(
        f"config: backbone.name={cfg.backbone.name}: made for {made_for[0]} pixels, the views have "
        f"{', '.join(map(str, sizes))}; set backbone.kwargs.{right}"
    )


def set_stem(backbone: nn.Module, stem: str) -> None:
    """Change a ResNet's first layers in place.

    `paper` is a 3x3 convolution of stride 1 and padding 1 without max pooling (Section 4.1, small
    and medium data); `solo` is the host's for CIFAR, which pads by 2 (34x34 maps from 32x32
    images, 1.27 times the work); `imagenet` is torchvision's; `auto` leaves the host's choice
    (train/settling.py has made one before a run begins).
    """
    if stem == "auto":
        return
    if not has_stem(backbone):
        raise UserError(
            f"config: backbone.stem={stem}: only ResNets have this stem; use backbone.stem=auto"
        )
    conv = backbone.conv1
    if stem == "imagenet":
        if conv.kernel_size != (7, 7):
            backbone.conv1 = _convolution(conv, 7, 2, 3)
        backbone.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        return
    padding = {"paper": 1, "solo": 2}[stem]
    if conv.kernel_size == (3, 3):  # the host's own CIFAR stem: same weights, other padding
        conv.padding = (padding, padding)
    else:
        backbone.conv1 = _convolution(conv, 3, 1, padding)
    backbone.maxpool = nn.Identity()


def has_stem(backbone: nn.Module) -> bool:
    """Whether it is a ResNet with one first convolution and a max pool."""
    conv = getattr(backbone, "conv1", None)
    return isinstance(conv, nn.Conv2d) and hasattr(backbone, "maxpool")


def set_stems(method: nn.Module, stem: str) -> None:
    """`set_stem` for a method of the host: its backbone and, if it has one, the momentum copy."""
    set_stem(method.backbone, stem)
    teacher = getattr(method, "momentum_backbone", None)
    if teacher is not None and stem != "auto":
        set_stem(teacher, stem)
        teacher.conv1.weight.data.copy_(method.backbone.conv1.weight.data)
        teacher.requires_grad_(False)


def _convolution(like: nn.Conv2d, size: int, stride: int, padding: int) -> nn.Conv2d:
    conv = nn.Conv2d(3, like.out_channels, size, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")  # torchvision's
    return conv
