"""1.0.2's pipelines behind the main branch's config."""

from omegaconf import DictConfig
from solo.utils import pretrain_dataloader
from torchvision import transforms
from torchvision.transforms import InterpolationMode


def pipeline(augmentation: DictConfig) -> transforms.Compose:
    """The host's pipeline of one view; equalization, and no crop (`rrc.enabled: false`, which
    resizes the shorter side), are edited in, as the main branch has them."""
    aug = augmentation
    host = pretrain_dataloader.prepare_transform(
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
    if not aug.rrc.enabled:
        steps[0] = transforms.Resize(aug.crop_size, interpolation=InterpolationMode.BICUBIC)
    # the flip is the last of them
    steps.insert(-1, transforms.RandomEqualize(aug.equalization.prob))
    # A step that is never applied still costs its random number, and time.
    steps = [step for step in steps if getattr(step, "p", 1) != 0]
    host.transforms = [*steps, to_tensor, normalize]
    return host
