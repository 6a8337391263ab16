"""Each operation against torchvision or PIL on 8-bit images, same parameters.

The limits in the tests' names are 8-bit levels. Results are not rounded here and are in PIL, which
alone makes 0.5, or 1 where PIL cuts off instead of rounding.
"""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode

from ressl_plugin.views import ops

KINDS = ("noise", "photo")


def image(kind, height, width=None, seed=0):
    """Uniform noise, the worst case; or waves with a little noise and clipped ends."""
    width = width or height
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    turn = 6 * rng.random(2) @ np.stack([x.ravel(), y.ravel()])
    wave = 127 + 150 * np.sin(turn[:, None] + rng.random(3) * 6)
    wave = wave.reshape(height, width, 3) + 6 * rng.standard_normal((height, width, 3))
    return wave.clip(0, 255).astype(np.uint8)


def tensor(*arrays):
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()


def levels(x):
    return x[0].permute(1, 2, 0).double().numpy()


def error(ours, reference):
    return np.abs(levels(ours) - np.asarray(reference).astype(float))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("full, size", [(32, 32), (20, 32), (48, 32), (96, 33), (9, 8)])
def test_crop_resize_flip_within_1_5_levels(kind, mode, full, size):
    rng = np.random.default_rng(1)
    worst = 0
    for seed in range(12):
        array = image(kind, full, full + 5, seed)
        h, w = int(rng.integers(2, full + 1)), int(rng.integers(2, full + 6))
        top, left = int(rng.integers(0, full - h + 1)), int(rng.integers(0, full + 5 - w + 1))
        flip = seed % 2
        reference = F.resized_crop(
            Image.fromarray(array), top, left, h, w, (size, size), InterpolationMode(mode)
        )
        reference = F.hflip(reference) if flip else reference
        box = torch.tensor([[top, left, h, w]])
        ours = ops.crop_resize_flip(tensor(array), box, torch.tensor([flip]), size, mode)
        worst = max(worst, error(ours, reference).max())
    assert worst <= 1.5


def test_resize_of_the_whole_image_to_its_own_size_changes_nothing():
    x = tensor(image("noise", 16))
    same = ops.crop_resize_flip(x, torch.tensor([[0, 0, 16, 16]]), torch.tensor([False]), 16)
    assert torch.allclose(same, x, atol=1e-3)


def test_images_of_a_batch_have_their_own_crops_and_flips():
    x = tensor(image("photo", 24), image("noise", 24))
    box, flip = torch.tensor([[0, 0, 24, 24], [4, 6, 10, 12]]), torch.tensor([1, 0])
    both = ops.crop_resize_flip(x, box, flip, 16)
    for i in range(2):
        alone = ops.crop_resize_flip(x[i : i + 1], box[i : i + 1], flip[i : i + 1], 16)
        assert torch.allclose(both[i], alone[0], atol=1e-3)


JITTER = {  # factor -> the coefficients of ops.affine_colour
    "brightness": (lambda f: (f, 0 * f, 0 * f), F.adjust_brightness),
    "contrast": (lambda f: (f, 0 * f, 1 - f), F.adjust_contrast),
    "saturation": (lambda f: (f, 1 - f, 0 * f), F.adjust_saturation),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", JITTER)
def test_jitter_within_1_5_levels_of_pil_images_and_0_05_of_tensors(kind, name):
    coefficients, torchvisions = JITTER[name]
    for seed, factor in enumerate(np.linspace(0, 2, 9)):
        array = image(kind, 32, seed=seed)
        each = coefficients(torch.tensor([factor], dtype=torch.float32))
        got = ops.affine_colour(tensor(array), *each)
        assert error(got, torchvisions(Image.fromarray(array), factor)).max() <= 1.5
        exact = torchvisions(tensor(array) / 255, factor) * 255
        assert error(got, levels(exact)).max() <= 0.05


@pytest.mark.parametrize("kind, share", [("noise", 1 / 200), ("photo", 1 / 50)])
def test_hue_within_1_5_levels_of_pil_images_but_at_ties(kind, share):
    # PIL's hue has 255 steps of up to 6 levels. Where a pixel's hue falls just on one, as it often
    # does if its colour is clipped (the "photo"), float rounding takes PIL to either side.
    errors = []
    for seed, shift in enumerate(np.linspace(-0.499, 0.499, 21)):
        array = image(kind, 32, seed=seed)
        got = ops.hue(tensor(array), torch.tensor([shift], dtype=torch.float32))
        errors.append(error(got, F.adjust_hue(Image.fromarray(array), shift)))
    errors = np.stack(errors)
    assert (errors.max(-1) > 1.5).mean() < share and errors.max() < 7


def test_hue_leaves_gray_pixels_alone():
    gray = torch.arange(256.0).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert error(ops.hue(gray, torch.tensor([0.3])), levels(gray)).max() < 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_grayscale_within_0_6_levels(kind):
    array = image(kind, 32)
    three = ops.grayscale(tensor(array)).expand(-1, 3, -1, -1)
    assert error(three, F.to_grayscale(Image.fromarray(array), 3)).max() <= 0.6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (32, 32), (20, 33), (3, 3), (224, 224)])
def test_blur_within_2_levels_borders_included(kind, size):
    sigmas = np.linspace(0.1, 2.0, 20 if size[0] < 224 else 5)
    for seed, sigma in enumerate(sigmas):
        array = image(kind, *size, seed=seed)
        got = ops.gaussian_blur(tensor(array), torch.tensor([sigma], dtype=torch.float32))
        reference = Image.fromarray(array).filter(ImageFilter.GaussianBlur(float(sigma)))
        assert error(got, reference).max() <= 2.01, sigma


def test_blur_of_a_wide_sigma_on_an_image_smaller_than_its_box():
    array = image("photo", 6)
    got = ops.gaussian_blur(tensor(array), torch.tensor([5.0]), largest=5.0)
    reference = Image.fromarray(array).filter(ImageFilter.GaussianBlur(5.0))
    assert error(got, reference).max() <= 2.01


def test_blur_gives_each_image_its_own_sigma():
    x = tensor(image("noise", 16), image("photo", 16))
    both = ops.gaussian_blur(x, torch.tensor([0.3, 1.9]))
    assert torch.equal(both[1:], ops.gaussian_blur(x[1:], torch.tensor([1.9])))
    assert torch.equal(both[:1], ops.gaussian_blur(x[:1], torch.tensor([0.3])))


@pytest.mark.parametrize("threshold", [0, 100, 128, 255, 256])
def test_solarize_is_pils(threshold):
    array = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    got = ops.solarize(tensor(array), threshold)
    assert error(got, ImageOps.solarize(Image.fromarray(array), threshold)).max() < 1e-3


@pytest.mark.parametrize("kind", [*KINDS, "flat", "two levels"])
def test_equalize_is_pils(kind):
    array = image("noise", 24) if kind in ("flat", "two levels") else image(kind, 24)
    array = np.full_like(array, 77) if kind == "flat" else array
    array = array // 128 * 100 if kind == "two levels" else array
    reference = ImageOps.equalize(Image.fromarray(array))
    assert error(ops.equalize(tensor(array)), reference).max() < 1e-3


def test_normalise_is_torchvisions():
    x, mean, std = tensor(image("noise", 8)), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    expected = F.normalize(x / 255, mean, std)
    assert torch.allclose(ops.normalise(x, mean, std), expected, atol=1e-5)
