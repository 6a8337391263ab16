"""Drawing whole recipes: reproducible, of the right type and shape, by torchvision's laws."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision import transforms

from ressl_plugin.utils.errors import UserError
from ressl_plugin.views import batched, ops
from ressl_plugin.views.recipe import View, read

PAIR = [{"preset": "contrastive", "crop_size": 16}, {"preset": "weak", "crop_size": 16}]
EVERYTHING = {"solarization": {"prob": 0.5}, "equalization": {"prob": 0.5}}


def images(n=12, height=20, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_seed_gives_the_same_views_and_another_does_not():
    recipe = read(PAIR)
    first, again, other = (batched.draw(images(), recipe, seeded(s)) for s in (1, 1, 2))
    for a, b, c in zip(first, again, other):
        assert torch.equal(a, b) and not torch.allclose(a, c)


def test_multicrop_gives_one_tensor_for_each_crop_in_order():
    recipe = read([{"preset": "multicrop5", "crop_size": 28}])
    views = batched.draw(images(3, 40, 30), recipe, seeded(0))
    assert [v.shape for v in views] == [(3, 3, s, s) for s in (28, 28, 24, 20, 16, 12)]
    assert all(v.isfinite().all() for v in views)


def test_channels_first_and_last_images_are_the_same_images():
    recipe = read(PAIR)
    a = batched.draw(images(), recipe, seeded(0))
    b = batched.draw(images().permute(0, 3, 1, 2).contiguous(), recipe, seeded(0))
    assert all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("channels_last", [False, True])
def test_type_and_memory_format(channels_last):
    recipe = read([{**PAIR[0], **EVERYTHING}, PAIR[1]])
    plain = batched.draw(images(), recipe, seeded(0))
    views = batched.draw(images(), recipe, seeded(0), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for view, reference in zip(views, plain):
        assert view.dtype == torch.float32 and view.is_contiguous(memory_format=layout)
        assert torch.equal(view, reference)


def test_arithmetic_stays_float32_under_autocast():
    recipe = read(PAIR)
    plain = batched.draw(images(), recipe, seeded(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = batched.draw(images(), recipe, seeded(0))
    assert all(torch.equal(a, b) for a, b in zip(views, plain))


def test_products_are_full_float32_whatever_the_run_has_set(monkeypatch, products_as_in_a_run):
    """A run takes TF32 for its networks; in it a crop of 224 pixels is off by levels."""
    seen = []

    def watched(operation):
        def watch(*args, **kwargs):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return operation(*args, **kwargs)

        return watch

    for name in ("crop_resize_flip", "gaussian_blur"):
        monkeypatch.setattr(ops, name, watched(getattr(ops, name)))
    blurred = View("student", 20, blur_prob=1, blur_sigma=(1, 2))
    batched.draw(images(), read(PAIR), seeded(0))
    batched.draw(images(), read(PAIR), seeded(0), core=batched.apply_dense)
    drawn = len(seen)
    batched.apply_colour(torch.rand(4, 3, 20, 20), blurred, seeded(0))
    assert torch.get_float32_matmul_precision() == "high"
    assert len(seen) > drawn > 4 and set(seen) == {"ieee"}


def test_the_images_are_left_as_they_were_and_no_graph_is_kept():
    source = images()
    before = source.clone()
    views = batched.draw(source, read(PAIR))
    assert torch.equal(source, before) and not any(v.requires_grad for v in views)


def test_an_image_that_no_operation_chose_is_only_normalised():
    entry = {"crop_size": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
    recipe = read([{**entry, "role": "student"}, {**entry, "role": "teacher"}])
    source = images(5, 16, 16)
    expected = (source.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    for view in batched.draw(source, recipe):
        assert torch.allclose(view, expected, atol=1e-5)


def test_no_crop_takes_the_middle_square_of_an_oblong_image():
    entry = {"crop_size": 8, "mean": [0] * 3, "std": [1] * 3}
    recipe = read([{**entry, "role": "student"}, {**entry, "role": "teacher"}])
    source = images(2, 8, 14)
    expected = source[:, :, 3:11].permute(0, 3, 1, 2) / 255
    assert torch.allclose(batched.draw(source, recipe)[0], expected, atol=1e-5)


@pytest.mark.parametrize("operation", ["jitter", "gray", "blur", "solarize", "equalize"])
def test_the_share_of_images_that_an_operation_changes(operation):
    n, p = 400, 0.3
    colour = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    options = {"jitter_prob": p, **colour} if operation == "jitter" else {f"{operation}_prob": p}
    view = View("student", 24, blur_sigma=(1, 2), **options)
    x = images(n, 24, 24).permute(0, 3, 1, 2).float()
    params = batched.draw_params(view, n, 24, 24, seeded(3))
    changed = (batched.apply(x, params, view) - x).abs().amax((1, 2, 3)) > 4
    assert torch.equal(changed, getattr(params, operation))
    assert stats.binomtest(int(changed.sum()), n, p).pvalue > 0.001


def test_the_order_of_the_four_jitters_is_uniform_over_24():
    view = View("student", 8, jitter_prob=1, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    params = batched.draw_params(view, 4800, 8, 8, seeded(0))
    # Only contrast has a mean term and only saturation a luma term.
    contrast = (params.colour[:, :, 2] != 0).int().argmax(1)
    saturation = (params.colour[:, :, 1] != 0).int().argmax(1)
    order = params.hue_turn * 9 + contrast * 3 + saturation
    counts = order.bincount()
    counts = counts[counts > 0]
    assert len(counts) == 24 and stats.chisquare(counts.numpy()).pvalue > 0.001


@pytest.mark.parametrize(
    "shape, area, n",
    [((32, 32), (0.2, 1), 3000), ((24, 60), (0.5, 1), 3000), ((9, 90), (0.9, 1), 100)],
)
def test_boxes_follow_the_law_of_random_resized_crop(shape, area, n):
    """Two-sample tests at p < 0.001, four statistics. The last shape always falls back, to one
    and the same box."""
    view = View("student", 16, crop_enabled=True, area=area)
    ours = batched.draw_params(view, n, *shape, seeded(0)).box.double().numpy()
    torch.manual_seed(1)
    image = torch.empty(3, *shape)
    draw = transforms.RandomResizedCrop.get_params
    theirs = np.array([draw(image, list(area), [3 / 4, 4 / 3]) for _ in range(n)])
    top, left, h, w = ours.T
    assert (ours >= 0).all() and (top + h <= shape[0]).all() and (left + w <= shape[1]).all()
    for statistic in (
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 3] / b[:, 2],
        lambda b: b[:, 0] + b[:, 2] / 2,
        lambda b: b[:, 1] + b[:, 3] / 2,
    ):
        assert stats.ks_2samp(statistic(ours), statistic(theirs), method="asymp").pvalue > 0.001


def test_the_compiled_core_draws_what_the_plain_one_does():
    """With all operations, as each has a second form there. Not compiled: that takes minutes."""
    recipe = read([{**PAIR[0], **EVERYTHING}, PAIR[1]])
    plain = batched.draw(images(), recipe, seeded(0))
    dense = batched.draw(images(), recipe, seeded(0), core=batched.apply_dense)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain, dense))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_torch_compile_takes_the_core_whole(products_as_in_a_run):
    recipe = read(PAIR)
    core = torch.compile(batched.apply_dense, fullgraph=True)
    plain = batched.draw(images(), recipe, seeded(0))
    compiled = batched.draw(images(), recipe, seeded(0), core=core)
    # A compiler may fuse a multiplication into an addition, and PIL's hue has steps.
    for a, b in zip(plain, compiled):
        assert ((a - b).abs() > 0.02).float().mean() < 0.01


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_does():
    recipe = read([{**PAIR[0], **EVERYTHING}, PAIR[1]])
    here = batched.draw(images(), recipe, seeded(0))
    there = batched.draw(images().cuda(), recipe, seeded(0))
    for a, b in zip(here, there):
        assert ((a - b.cpu()).abs() > 0.02).float().mean() < 0.01


def test_colours_alone_are_what_follows_the_crop():
    view = read(PAIR).crops[0]
    x = images(6, 16, 16).permute(0, 3, 1, 2).float() / 255
    before = x.clone()
    a, b = (batched.apply_colour(x, view, seeded(4)) for _ in range(2))
    assert torch.equal(a, b) and torch.equal(x, before) and a.shape == x.shape
    weak = read(PAIR).crops[1]
    std, mean = (torch.tensor(t).view(1, 3, 1, 1) for t in (weak.std, weak.mean))
    assert torch.allclose(batched.apply_colour(x, weak), (x - mean) / std, atol=1e-5)


@pytest.mark.parametrize("bad", [images().float(), images()[..., :2], images()[0]])
def test_other_images_are_refused(bad):
    with pytest.raises(UserError, match="takes uint8"):
        batched.draw(bad, read(PAIR))


def test_a_batch_in_parts_is_the_batch(monkeypatch):
    """On a CPU a batch is drawn in parts that its cache holds; its views do not depend on them."""
    recipe = read([{**PAIR[0], **EVERYTHING}, PAIR[1]])
    x = images(7, 16, 16).permute(0, 3, 1, 2).float() / 255
    drawn = []
    for pixels in (1 << 18, 3 * 20 * 20, 1):
        monkeypatch.setattr(batched, "CPU_PIXELS", pixels)
        views = batched.draw(images(7), recipe, seeded(0))
        drawn.append([*views, batched.apply_colour(x, recipe.crops[0], seeded(1))])
    for others in drawn[1:]:
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(drawn[0], others))


def test_views_by_role():
    """A list whose teacher stands between two of the student's."""
    entries = [
        {"preset": "contrastive", "crop_size": 16},
        {"preset": "weak", "crop_size": 16},
        {"preset": "contrastive", "crop_size": 8},
    ]
    views = batched.Views(entries, ((0.5,) * 3, (0.2,) * 3), "bilinear")
    drawn = batched.draw(images(), read(entries, ((0.5,) * 3, (0.2,) * 3), "bilinear"), seeded(1))
    contrastive, weak = views(images(), seeded(1))
    assert torch.equal(weak, drawn[1]) and [len(v) for v in contrastive] == [12, 12]
    assert all(map(torch.equal, contrastive, (drawn[0], drawn[2])))
