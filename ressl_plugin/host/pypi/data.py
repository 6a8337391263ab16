"""1.0.2's pipelines behind the main branch's config."""

from PIL import ImageOps
from solo.utils import pretrain_dataloader as _pretrain
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin.host import pipelines
from ressl_plugin.host.defaults import DATASETS


class Equalization:
    """Histogram equalization of a PIL image, which 1.0.2 has not."""

    def __call__(self, image):
        return ImageOps.equalize(image)


def view_transform(dataset: str, augmentation):
    """The host's pipeline of one view: PIL image -> float tensor (3, H, W), normalised.

    `augmentation` is an entry of the config's list; what it does not name is not applied.
    `mean`/`std` hold for any data set when given, and so do the additions `gaussian_blur.sigma`,
    `interpolation` and `rrc.ratio`. Equalization, and no crop (`rrc.enabled: false`, which
    resizes the shorter side), are edited in, as the main branch has them.
    """
    aug = pipelines.complete(augmentation)
    host = _pretrain.prepare_transform(
        dataset if dataset in DATASETS else "custom",
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
    steps = host.transforms
    if not aug.rrc.enabled:
        steps[0] = transforms.Resize(aug.crop_size, interpolation=InterpolationMode.BICUBIC)
    # A step that is never applied still costs its random number, and time.
    steps = [step for step in steps if getattr(step, "p", 1) != 0]
    if aug.equalization.prob:
        equalize = transforms.RandomApply([Equalization()], p=aug.equalization.prob)
        # Before the flip and the two steps that make a normalised tensor.
        last = next(
            i
            for i, step in enumerate(steps)
            if isinstance(step, transforms.RandomHorizontalFlip | transforms.ToTensor)
        )
        steps.insert(last, equalize)
    host.transforms = steps
    return pipelines.edit(host, aug, dataset, _pretrain.GaussianBlur)


def n_crops(pairs):
    """[(transform, number of crops), ...] -> PIL image -> list of tensors, in that order."""
    transforms_, counts = zip(*pairs)
    return _pretrain.prepare_n_crop_transform(list(transforms_), list(counts))
