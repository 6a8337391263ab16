"""What DALI is made to do with an image: parity with Pillow and torchvision (DALI on the CPU)."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from ressl_plugin.views.recipe import read

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")

from ressl_plugin.data import load_image
from ressl_plugin.views.dali import draw, pipeline

CROP = {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}}
WEAK = {"role": "teacher", "crop_size": 64, **CROP, "horizontal_flip": {"prob": 0.5}}
STUDENT = {**WEAK, "role": "student"}


def run(files, views, inputs):
    """The graph once on these files -> crops (V arrays), corners, sizes, flips."""
    names = [np.frombuffer(str(file).encode(), np.uint8) for file in files]
    pipe = pipeline(
        lambda: (names, *inputs),
        views,
        "cpu",
        report=True,
        batch_size=len(files),
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
    )
    *crops, starts, sizes, flips = (np.array(out.as_tensor()) for out in pipe.run())
    return crops, starts, sizes, flips


def test_crops_are_pillows(tmp_path):
    """Same windows, Pillow's crop and bicubic resize: measured mean 0.1 to 0.2 levels. Where the
    filter reaches over the crop's border DALI repeats the border, Pillow weights what is left."""
    rng = np.random.default_rng(1)
    files = [tmp_path / f"{i}.jpg" for i in range(24)]
    for file in files:
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        small.resize((90, 70), Image.BICUBIC).save(file, quality=92)
    views = read([STUDENT, WEAK]).crops
    crops, starts, sizes, flips = run(files, views, draw(views, 24, rng))
    errors, inner = [], []
    for n, file in enumerate(files):
        image = load_image(file)
        for v in range(2):
            (top, left), (height, width) = starts[n, v], sizes[n, v]
            box = (left, top, left + width, top + height)
            wanted = np.asarray(image.crop(box).resize((64, 64), Image.BICUBIC), np.int64)
            wanted = wanted[:, ::-1] if flips[n, v] else wanted
            error = np.abs(crops[v][n].transpose(1, 2, 0) - wanted)
            errors.append(error.ravel())
            inner.append(error[4:-4, 4:-4].max())
    errors = np.concatenate(errors)
    assert errors.mean() < 0.25
    assert np.quantile(errors, 0.999) <= 3
    assert max(inner) <= 1


@pytest.mark.parametrize(("width", "height", "area"), [(40, 30, (0.2, 1)), (90, 24, (0.5, 0.9))])
def test_crop_law_is_torchvisions(tmp_path, width, height, area):
    """2,000 windows against RandomResizedCrop.get_params; the wide image takes the fallback."""
    from scipy.stats import ks_2samp

    file = tmp_path / "one.png"
    Image.new("RGB", (width, height)).save(file)
    crop = {"rrc": {"enabled": True, "crop_min_scale": area[0], "crop_max_scale": area[1]}}
    entry = {"role": "student", "crop_size": 4, "num_crops": 5, **crop}
    views = [v for v in read([entry, {**entry, "role": "teacher", "num_crops": 1}]).crops[:5]]
    _, starts, sizes, _ = run([file] * 400, views, draw(views, 400, np.random.default_rng(2)))
    ours = np.concatenate([starts, sizes], -1).reshape(-1, 4).astype(float)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array(
        [transforms.RandomResizedCrop.get_params(image, area, (3 / 4, 4 / 3)) for _ in range(2000)],
        float,
    )
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()

    def statistics(w):
        return [*w.T, w[:, 2] * w[:, 3], w[:, 3] / w[:, 2]]

    for a, b in zip(statistics(ours), statistics(theirs)):
        assert ks_2samp(a, b).pvalue > 0.001 / 12


def test_views_of_an_image_are_independent():
    views = read([STUDENT, WEAK]).crops
    sides, place, flips = draw(views, 4000, np.random.default_rng(0))
    for values in (sides[:, :, 0, 0], place[:, :, 0], place[:, :, 1], flips):
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.07  # 4.4 standard deviations
    assert abs(flips.mean() - 0.5) < 0.03


def test_flip_probability_of_each_view():
    never, always = {"horizontal_flip": {"prob": 0.0}}, {"horizontal_flip": {"prob": 1.0}}
    views = read([{**STUDENT, **never}, {**WEAK, **always}]).crops
    flips = draw(views, 50, np.random.default_rng(0))[2]
    assert flips.mean(0).tolist() == [0, 1]
