"""The contact sheet shows the very pixels of the views, in rows and columns."""

import numpy as np
import torch
from PIL import Image

from ressl_plugin.evaluate.contact_sheet import sheet
from ressl_plugin.views import batched
from ressl_plugin.views.recipe import read


def images(n=3, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=generator)


def drawn(source, recipe):
    views = batched.draw(source, recipe=recipe, generator=torch.Generator().manual_seed(0))
    return sheet([Image.fromarray(image.numpy()) for image in source], recipe, views)


def columns_of(picture, pixels):
    """Left edges at which the array `pixels` stands in the picture."""
    page = np.asarray(picture)
    h, w = pixels.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(page, (h, w, 3))[:, :, 0]
    return np.argwhere((windows[:, :, ::31, ::31] == pixels[::31, ::31]).all((2, 3, 4)))


def test_original_and_views_stand_side_by_side_at_four_times_their_size():
    plain = {"crop_size": 32, "mean": [0.4] * 3, "std": [0.2] * 3}
    recipe = read([{**plain, "role": "student"}, {**plain, "role": "teacher"}])
    source = images()
    picture = drawn(source, recipe)
    for i, image in enumerate(source):
        big = image.numpy().repeat(4, 0).repeat(4, 1)
        places = columns_of(picture, big)
        # Views that change nothing: the image three times, in its own row.
        assert len(places) == 3 and len({y for y, _ in places}) == 1, i


def test_a_white_picture_has_an_edge():
    plain = {"crop_size": 32, "mean": [0.4] * 3, "std": [0.2] * 3}
    recipe = read([{**plain, "role": "student"}, {**plain, "role": "teacher"}])
    white, views = Image.new("RGB", (32, 32), "white"), [torch.full((1, 3, 32, 32), 3.0)] * 2
    page = np.asarray(sheet([white], recipe, views).convert("L"))
    row = page[-70]  # across all pictures
    assert np.count_nonzero(row < 250) == 6


def test_small_crops_are_shown_small_and_every_row_is_there():
    recipe = read([{"preset": "multicrop4", "crop_size": 32}])
    one, three = (drawn(images(n), recipe) for n in (1, 3))
    assert three.width == one.width and three.height > 2 * one.height - 100
    assert three.height - one.height == 2 * (128 + 8)


def test_photographs_of_several_sizes_as_pil_images():
    recipe = read([{"preset": "contrastive"}, {"preset": "weak"}])
    photographs = [Image.new("RGB", (300, 200), "red"), Image.new("L", (40, 90), 200)]
    views = [torch.zeros(2, 3, 224, 224)] * 2
    picture = sheet(photographs, recipe, views)
    red = np.asarray(picture)[..., :].reshape(-1, 3)
    assert ((red == (255, 0, 0)).all(1)).sum() == 224 * 149
