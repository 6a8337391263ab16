"""Views: what the host's own pipelines take, and what is edited into them.

Shared by both generations; `main` and `pypi.data` call the host around it.
"""


from omegaconf import DictConfig, OmegaConf
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from ressl_plugin.host.defaults import as_config, choose
from ressl_plugin.utils.errors import UserError

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

# An augmentation that an entry does not name is not applied.
ABSENT = {
    "rrc": {"enabled": False, "crop_min_scale": 0.08, "crop_max_scale": 1.0},
    "color_jitter": {
        "prob": 0.0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "hue": 0.0,
    },
    "grayscale": {"prob": 0.0},
    "gaussian_blur": {"prob": 0.0},
    "solarization": {"prob": 0.0},
    "equalization": {"prob": 0.0},
    "horizontal_flip": {"prob": 0.0},
}


def complete(augmentation) -> DictConfig:
    """A copy of one entry of `augmentations` that has every key which the host reads.

    Raises:
        UserError: no crop_size.
    """
    given = OmegaConf.to_container(as_config(augmentation), resolve=True)
    # A null mean or std is one not given; the host would take it for the value.
    given = {key: value for key, value in given.items() if value is not None}
    if "crop_size" not in given:
        raise UserError("augmentations: an entry has no crop_size; give the view's size in pixels")
    filled = {**given, **{key: {**off, **given.get(key, {})} for key, off in ABSENT.items()}}
    return OmegaConf.create(filled)


def find(pipeline: transforms.Compose, kind: type):
    """The step of `kind` in a pipeline, looked up inside RandomApply too; None if absent."""
    for step in pipeline.transforms:
        inner = step.transforms if isinstance(step, transforms.RandomApply) else [step]
        for candidate in inner:
            if isinstance(candidate, kind):
                return candidate
    return None


def edit(pipeline: transforms.Compose, augmentation: DictConfig, dataset: str, blur: type):
    """Edit into the host's pipeline what its own arguments do not reach.

    `mean`/`std` (the host ignores them for its named data sets), `gaussian_blur.sigma` (pixels, a
    number or a pair), `interpolation` and `rrc.ratio` (width / height, a pair). `blur` is the
    host's blur class.
    """
    normalize = find(pipeline, transforms.Normalize)
    mean, std = MEAN_STD.get(dataset, IMAGENET)
    normalize.mean = tuple(augmentation.get("mean") or mean)
    normalize.std = tuple(augmentation.get("std") or std)

    crop = find(pipeline, transforms.RandomResizedCrop) or find(pipeline, transforms.Resize)
    if augmentation.get("interpolation"):
        modes = {mode.value: mode for mode in InterpolationMode}
        crop.interpolation = choose("interpolation", augmentation.interpolation, modes)
    if augmentation.rrc.get("ratio") and isinstance(crop, transforms.RandomResizedCrop):
        crop.ratio = tuple(augmentation.rrc.ratio)

    sigma = augmentation.gaussian_blur.get("sigma")
    blurring = find(pipeline, blur)
    if sigma is not None and blurring is not None:
        blurring.sigma = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)
    return pipeline
