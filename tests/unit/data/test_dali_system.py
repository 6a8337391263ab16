"""What the back end leaves to the operating system: names of files, and forks."""

import gc
import os
import signal
import time

import numpy as np
import pytest
from helpers import image_folder, make_config
from PIL import ExifTags, Image

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")

from ressl_plugin.data import dali, load_image
from ressl_plugin.data.sources import FolderImages
from ressl_plugin.utils.errors import UserError
from ressl_plugin.views.recipe import read


def make(dataset, batch_size):
    whole = {"role": "student", "crop_size": 32}
    views = read([whole, {**whole, "role": "teacher"}])
    cfg = make_config(dali={"device": "cpu"})
    return dali.DaliLoader(cfg, views, dataset, batch_size)


def uncoloured(dataset):
    loader = make(dataset, 1)
    loader.draw_colour = lambda images, *_: images
    return loader


def test_a_name_that_is_no_utf_8(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with open(os.fsencode(tmp_path / "a") + b"/\xff\xfe.png", "wb") as file:
        Image.fromarray(pixels).save(file, "png")
    (batch,) = uncoloured(FolderImages(tmp_path))
    got = (batch[1][0][0] * 255).round().permute(1, 2, 0).byte().numpy()
    assert np.array_equal(got, pixels)


@pytest.mark.parametrize("turned", [False, True])
def test_exif_orientation_is_heeded_if_asked_for(tmp_path, turned):
    pixels = np.linspace(0, 255, 32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "a" / "1.jpg", quality=95, exif=exif)
    images = FolderImages(tmp_path)
    images.exif = turned
    (batch,) = uncoloured(images)
    got = (batch[1][0][0] * 255).round().permute(1, 2, 0).numpy()
    wanted = np.asarray(load_image(tmp_path / "a" / "1.jpg", turned), np.float32)
    assert np.abs(got - wanted).max() <= 3
    assert np.abs(got - np.rot90(wanted)).max() > 100


def test_a_gif_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("P", (32, 32)).save(tmp_path / "a" / "1.gif")
    with pytest.raises(UserError, match=r"DALI reads no GIF, and .*1\.gif.*data\.backend=host"):
        make(FolderImages(tmp_path), 1)


def test_a_fork_does_not_end_its_parents_pipelines(tmp_path):
    """Nor wait for their threads: the loader of an earlier run, not collected yet."""
    root = image_folder(tmp_path, splits=("train",)) / "train"
    gc.disable()
    try:
        dropped = make(FolderImages(root), 4)
        next(iter(dropped))
        dropped.itself = dropped
        del dropped
        pid = os.fork()
        if pid == 0:
            gc.collect()
            os._exit(0)
        for _ in range(200):
            if os.waitpid(pid, os.WNOHANG) == (pid, 0):
                return
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        pytest.fail("the fork waits for threads that it has not")
    finally:
        gc.enable()
