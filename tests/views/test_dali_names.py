"""A file's name is what the file system says, not text."""

import os

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")

from ressl_plugin.data import FolderImages
from ressl_plugin.views.dali import DaliLoader
from ressl_plugin.views.recipe import read


def test_a_name_that_is_no_utf_8(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with open(os.fsencode(tmp_path / "a") + b"/\xff\xfe.png", "wb") as file:
        Image.fromarray(pixels).save(file, "png")
    whole = {"role": "student", "crop_size": 32}
    recipe = read([whole, {**whole, "role": "teacher"}])
    colour = lambda images, *_: images
    (batch,) = DaliLoader(FolderImages(tmp_path), recipe, 1, draw_colour=colour)
    got = (batch[1][0][0] * 255).round().permute(1, 2, 0).byte().numpy()
    assert np.array_equal(got, pixels)
