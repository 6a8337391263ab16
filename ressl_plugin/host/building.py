"""Methods, backbones, views from a config in the main branch's schema, of either generation."""

from functools import partial

from omegaconf import OmegaConf
from PIL import ImageOps
from torch import nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

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


def view_transform(augmentation) -> transforms.Compose:
    """The host's pipeline of one view: PIL image -> float tensor (3, S, S), normalised.

    Args:
        augmentation: an entry as `views.recipe.expand` gives it. What the host's own arguments do
            not reach is edited in: `mean` and `std` (else ImageNet's), `interpolation` (else
            bicubic), `rrc.ratio` (width / height), `gaussian_blur.sigma` (pixels),
            `solarization.threshold` (8-bit level); without a crop the middle square, for the host
            keeps the image's shape there, and views of several shapes make no batch.
    """
    entry = OmegaConf.create(augmentation)
    pipeline = host.pipeline(entry)
    normalize = _find(pipeline, transforms.Normalize)
    for key in ("mean", "std"):
        if key in entry:
            setattr(normalize, key, tuple(entry[key]))
    crop = _find(pipeline, transforms.RandomResizedCrop | transforms.Resize)
    if "interpolation" in entry:
        crop.interpolation = InterpolationMode(entry.interpolation)
    if entry.rrc.enabled:
        crop.ratio = tuple(entry.rrc.ratio)
    else:
        pipeline.transforms.insert(1, transforms.CenterCrop(entry.crop_size))
    if blur := _find(pipeline, host.DATALOADER.GaussianBlur):
        blur.sigma = tuple(entry.gaussian_blur.sigma)
    threshold = entry.solarization.get("threshold", 128)
    for step in pipeline.transforms if threshold != 128 else ():  # the host's own knows no other
        inner = step.transforms if isinstance(step, transforms.RandomApply) else []
        if any(isinstance(one, host.DATALOADER.Solarization) for one in inner):
            step.transforms = [partial(ImageOps.solarize, threshold=threshold)]
    return pipeline


def _find(pipeline: transforms.Compose, kind):
    """The step of `kind` in a pipeline, looked up inside RandomApply too; None if absent."""
    for step in pipeline.transforms:
        inner = step.transforms if isinstance(step, transforms.RandomApply) else [step]
        for candidate in inner:
            if isinstance(candidate, kind):
                return candidate
    return None
