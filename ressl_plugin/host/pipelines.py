"""Views: the host's own pipelines, and what is edited into them."""

from omegaconf import OmegaConf
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin import host

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# The main branch's; 1.0.2 gives CIFAR-100 the values of CIFAR-10 and rounds their deviations.
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4914, 0.4823, 0.4466), (0.247, 0.243, 0.261)),
    "imagenet": IMAGENET,
    "imagenet100": IMAGENET,
    "custom": IMAGENET,
}


def view_transform(dataset: str, augmentation) -> transforms.Compose:
    """The host's pipeline of one view: PIL image -> float tensor (3, H, W), normalised.

    Args:
        dataset: whose mean and deviation are taken where the entry gives none.
        augmentation: an entry as `views.recipe.expand` gives it. What the host's own arguments do
            not reach is edited in: `mean` and `std` (which it ignores for its named data sets),
            `interpolation`, `rrc.ratio` (width / height), `gaussian_blur.sigma` (pixels).
    """
    entry = OmegaConf.create(augmentation)
    pipeline = host.pipeline(entry)
    normalize = _find(pipeline, transforms.Normalize)
    mean, std = MEAN_STD.get(dataset, IMAGENET)
    normalize.mean, normalize.std = tuple(entry.get("mean", mean)), tuple(entry.get("std", std))
    crop = _find(pipeline, transforms.RandomResizedCrop | transforms.Resize)
    if "interpolation" in entry:
        crop.interpolation = InterpolationMode(entry.interpolation)
    if entry.rrc.enabled:
        crop.ratio = tuple(entry.rrc.ratio)
    if blur := _find(pipeline, host.DATALOADER.GaussianBlur):
        blur.sigma = tuple(entry.gaussian_blur.sigma)
    return pipeline


def _find(pipeline: transforms.Compose, kind):
    """The step of `kind` in a pipeline, looked up inside RandomApply too; None if absent."""
    for step in pipeline.transforms:
        inner = step.transforms if isinstance(step, transforms.RandomApply) else [step]
        for candidate in inner:
            if isinstance(candidate, kind):
                return candidate
    return None


def n_crops(pairs):
    """[(transform, number of crops), ...] -> PIL image -> list of tensors, in that order."""
    steps, counts = zip(*pairs)
    return host.DATALOADER.prepare_n_crop_transform(list(steps), list(counts))
