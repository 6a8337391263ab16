"""Whole recipes: the back ends draw the same distributions, the host's torchvision pipeline first.

2,000 views of one image from each back end. Every statistic is measured on the pixels that come
out, by two-sample Kolmogorov-Smirnov tests (flip rate: exact, on the counts). A test fails at
p < 0.001 divided by the number of statistics that it looks at (Bonferroni), so one run of a right
back end in a thousand would fail by chance; the seeds are fixed, so none does.
"""

import random

import numpy as np
import pytest
import torch
from helpers import make_config
from PIL import Image
from scipy import stats

from ressl_plugin import host
from ressl_plugin.views import batched
from ressl_plugin.views.recipe import expand, read

DRAWS, LEVEL = 2000, 0.001
SIDE = 32
PLAIN = {"crop_size": 24, "mean": [0.0] * 3, "std": [1.0] * 3}
PAIR = [{"preset": "contrastive", **PLAIN}, {"preset": "weak", **PLAIN}]
GEOMETRY = [{"preset": "none", **PLAIN, "role": "student"}, PAIR[1]]


def draw_host(array, augmentations, folder):
    random.seed(0)
    torch.manual_seed(0)
    image = Image.fromarray(array)
    draws = [host.view_transform(e) for e in expand(augmentations) for _ in range(e["num_crops"])]
    return [torch.stack(v) for v in zip(*([draw(image) for draw in draws] for _ in range(DRAWS)))]


def draw_batched(array, augmentations, folder):
    images = torch.from_numpy(array).expand(DRAWS, *array.shape)
    return batched.draw(images, read(augmentations), torch.Generator().manual_seed(1))


def draw_dali(array, augmentations, folder):
    pytest.importorskip("nvidia.dali", reason="the dali extra is not installed")
    from ressl_plugin.data.dali import DaliLoader
    from ressl_plugin.data.sources import FlatFolder

    path = folder / "image.png"  # lossless, so that all back ends start from the same pixels
    Image.fromarray(array).save(path)
    dataset = FlatFolder(folder)
    dataset.samples = [(path, 0)] * DRAWS
    cfg = make_config(dali={"device": "cpu"})
    loader = DaliLoader(cfg, read(augmentations), dataset, DRAWS // 4, seed=2)
    return [torch.cat(views) for views in zip(*(views for _, views, _ in loader))]


BACK_ENDS = {"batched": draw_batched, "dali": draw_dali}
back_ends = pytest.mark.parametrize("back_end", BACK_ENDS)


def ramps():
    """Red tells the column and green the row, so that a view tells its crop and its flip."""
    row, column = np.mgrid[0:SIDE, 0:SIDE] * (224 // SIDE) + 16
    return np.stack([column, row, np.full_like(row, 128)], 2).astype(np.uint8)


def scene():
    """Coloured waves of several frequencies, dark and bright, with sharp edges."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    wave = [np.sin(9 * x + 4 * y) + (x > 0.6), np.cos(7 * y - 5 * x), np.sin(16 * x * y) - 0.5]
    return (120 + 70 * np.stack(wave, 2)).clip(0, 255).astype(np.uint8)


def geometry(views):
    """Area, aspect, position and flip of each crop, in pixels of the image; from ramps().

    The middle of a view is a straight ramp; a border's taps are cut off at the crop's edge.
    """
    size = views.shape[-1]
    inner = slice(4, size - 4)
    levels = views[:, :2].double() * 255 / (224 // SIDE)
    column, row = levels[:, 0, inner, inner].mean(1), levels[:, 1, inner, inner].mean(2)
    at = torch.arange(size, dtype=torch.float64)[inner]
    at = at - at.mean()
    slope_x, slope_y = ((line * at).sum(1) / at.square().sum() for line in (column, row))
    width, height = slope_x.abs() * size, slope_y * size
    return {
        "area": width * height,
        "aspect": width / height,
        "column": column.mean(1),
        "row": row.mean(1),
        "flip": slope_x < 0,
    }


def appearance(views):
    """Colour and sharpness of each view, on levels 0 to 1."""
    across, down = views.diff(dim=3).square(), views.diff(dim=2).square()
    energy = across.mean((1, 2, 3)) + down.mean((1, 2, 3))
    variance = views.var((1, 2, 3))
    return {
        "red": views[:, 0].mean((1, 2)),
        "green": views[:, 1].mean((1, 2)),
        "blue": views[:, 2].mean((1, 2)),
        "saturation": (views.amax(1) - views.amin(1)).mean((1, 2)),
        "contrast": variance.sqrt(),
        "gradient energy": energy,
        "sharpness": energy / (variance + 1e-4),
    }


def differences(ours, theirs):
    """The statistics whose distributions differ, with their p-values."""
    assert ours.keys() == theirs.keys()
    found = {}
    for name in ours:
        a, b = ours[name], theirs[name]
        if a.dtype == torch.bool:
            p = stats.fisher_exact([[int(t.sum()), len(t) - int(t.sum())] for t in (a, b)]).pvalue
        else:
            # 8-bit rounding makes ties in one back end that are none in another.
            a, b = (t.double().mul(1e4).round().numpy() for t in (a, b))
            p = stats.ks_2samp(a, b, method="asymp").pvalue
        if p < LEVEL / len(ours):
            found[name] = p
    return found


@pytest.fixture(scope="module")
def from_host(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    return {
        "ramps": draw_host(ramps(), GEOMETRY, folder),
        "scene": draw_host(scene(), PAIR, folder),
    }


@back_ends
def test_crops_and_flips_of_the_weak_view(back_end, from_host, tmp_path):
    ours = BACK_ENDS[back_end](ramps(), GEOMETRY, tmp_path)[1]
    assert not differences(geometry(ours), geometry(from_host["ramps"][1]))


@back_ends
def test_colour_saturation_and_sharpness(back_end, from_host, tmp_path):
    """Of the contrastive view and of the weak one."""
    drawn = BACK_ENDS[back_end](scene(), PAIR, tmp_path)
    for ours, theirs in zip(drawn, from_host["scene"], strict=True):
        assert not differences(appearance(ours), appearance(theirs))


OTHERS = {
    "preset": "contrastive",
    **PLAIN,
    "solarization": {"prob": 0.3},
    "equalization": {"prob": 0.3},
    "interpolation": "bilinear",
    "ratio": [0.5, 2],
    "gaussian_blur": {"sigma": [0.5, 1.5]},
}


@pytest.fixture(scope="module")
def others_from_host(tmp_path_factory):
    augmentations = [OTHERS, {"preset": "none", **PLAIN}]
    return draw_host(scene(), augmentations, tmp_path_factory.mktemp("host"))


@back_ends
def test_every_other_operation_too(back_end, others_from_host, tmp_path):
    theirs = others_from_host
    ours = BACK_ENDS[back_end](scene(), [OTHERS, {"preset": "none", **PLAIN}], tmp_path)
    assert not differences(appearance(ours[0]), appearance(theirs[0]))
    # No crop, nothing random: the same image every time, to a level.
    assert (ours[1] - theirs[1]).abs().max() <= 1.5 / 255


def test_geometry_is_measured_to_a_fifth_of_a_pixel():
    view = read(PAIR).crops[1]
    params = batched.draw_params(view, 200, SIDE, SIDE, torch.Generator().manual_seed(0))
    x = torch.from_numpy(ramps()).permute(2, 0, 1).float().expand(200, -1, -1, -1)
    got = geometry(batched.apply(x.contiguous(), params, view) / 255)
    top, left, height, width = params.box.double().unbind(1)
    assert torch.equal(got["flip"], params.flip)
    offset = 16 / (224 // SIDE)
    assert (got["column"] - (left + (width - 1) / 2) - offset).abs().max() < 0.2
    assert (got["row"] - (top + (height - 1) / 2) - offset).abs().max() < 0.2
    assert ((got["area"] / (width * height)) - 1).abs().max() < 0.05


CHANGES = {
    "color_jitter": {"brightness": 0.3},
    "gaussian_blur": {"prob": 0.25},
    "rrc": {"crop_min_scale": 0.35},
    "grayscale": {"prob": 0.1},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_slightly_different_recipe_is_told_apart(key, from_host, tmp_path):
    changed = [{**PAIR[0], key: CHANGES[key]}, PAIR[1]]
    ours = draw_batched(scene(), changed, tmp_path)[0]
    assert differences(appearance(ours), appearance(from_host["scene"][0]))
