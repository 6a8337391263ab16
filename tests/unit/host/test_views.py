"""Views, the same from both hosts."""

import numpy as np
import pytest
import torch
from PIL import Image

from ressl_plugin import host
from ressl_plugin.views.recipe import IMAGENET_MEAN_STD, expand

WEAK = {"crop_size": 16, "rrc": {"enabled": True, "crop_min_scale": 0.5, "crop_max_scale": 1.0}}


def photograph(size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1] // 5, size[0] // 5, 3), np.uint8)
    return Image.fromarray(pixels).resize(size)


def view(**entry):
    """The host's pipeline of one entry of `augmentations`."""
    return host.view_transform(*expand([entry]))


def test_view_is_normalised_by_what_is_given():
    image = Image.new("RGB", (40, 30), (255, 0, 51))
    tensor = view(crop_size=16)(image)
    mean, std = IMAGENET_MEAN_STD
    assert tensor.dtype == torch.float32 and tensor.shape[0] == 3 and 16 in tensor.shape[1:]
    expected = [(v - m) / s for v, m, s in zip((1, 0, 0.2), mean, std)]
    assert tensor.mean((1, 2)).tolist() == pytest.approx(expected, rel=1e-4)
    tensor = view(crop_size=16, mean=[0.5, 0.5, 0.5], std=[0.25, 0.5, 1.0])(image)
    assert tensor.mean((1, 2)).tolist() == pytest.approx([2, -1, -0.3], rel=1e-4)


def steps_of(pipeline):
    """{type name: step}, what RandomApply wraps taken out."""
    inner = lambda step: getattr(step, "transforms", [step])[0]
    return {type(inner(step)).__name__: step for step in pipeline.transforms}


def test_view_has_the_steps_that_are_named_in_mains_order():
    everything = {
        **WEAK,
        "color_jitter": {
            "prob": 0.8,
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
        },
        "grayscale": {"prob": 0.2},
        "gaussian_blur": {"prob": 0.5, "sigma": [0.5, 0.6]},
        "solarization": {"prob": 0.1},
        "equalization": {"prob": 0.3},
        "horizontal_flip": {"prob": 0.5},
        "interpolation": "bilinear",
    }
    everything["rrc"] = {**WEAK["rrc"], "ratio": [0.9, 1.1]}
    steps = steps_of(view(**everything))
    equalization = "Equalization" if host.GENERATION == "main" else "RandomEqualize"
    assert list(steps) == [
        "RandomResizedCrop",
        "ColorJitter",
        "RandomGrayscale",
        "GaussianBlur",
        "Solarization",
        equalization,
        "RandomHorizontalFlip",
        "ToTensor",
        "Normalize",
    ]
    crop = steps["RandomResizedCrop"]
    assert tuple(crop.scale) == (0.5, 1.0) and tuple(crop.ratio) == (0.9, 1.1)
    assert crop.interpolation.value == "bilinear"
    assert tuple(steps["GaussianBlur"].transforms[0].sigma) == (0.5, 0.6)
    assert steps[equalization].p == 0.3
    assert list(steps_of(view(**WEAK))) == [
        "RandomResizedCrop",
        "ToTensor",
        "Normalize",
    ]


def test_view_without_a_crop_is_the_middle_square():
    plain = {"rrc": {"enabled": False}, "horizontal_flip": {"prob": 0}, "mean": [0] * 3,
             "std": [1] * 3}  # fmt: skip
    found = view(crop_size=15, **plain)(photograph())
    middle = photograph().resize((20, 15), Image.Resampling.BICUBIC).crop((2, 0, 17, 15))
    assert torch.equal((found * 255).round(), torch.tensor(np.array(middle)).permute(2, 0, 1))


@pytest.mark.parametrize(("threshold", "level"), [(128, 60), (40, 195)])
def test_solarization_begins_where_the_recipe_says(threshold, level):
    solarized = view(**WEAK, solarization={"prob": 1.0, "threshold": threshold},
                     mean=[0.0] * 3, std=[1.0] * 3)  # fmt: skip
    pixels = solarized(Image.new("RGB", (8, 8), (60, 60, 60))) * 255
    assert torch.allclose(pixels, torch.full_like(pixels, level))
