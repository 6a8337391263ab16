"""The `dali` back end, run for real on image files (DALI on the CPU)."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchvision import transforms

from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.sampling import rand
from ressl_plugin.views.recipe import read

pytest.importorskip("nvidia.dali", reason="DALI is not installed (the `dali` extra)")

from ressl_plugin import data
from ressl_plugin.data import dali, load_image

CROP = {"rrc": {"enabled": True, "crop_min_scale": 0.2, "crop_max_scale": 1.0}}
WEAK = {"role": "teacher", "crop_size": 24, **CROP, "horizontal_flip": {"prob": 0.5}}
STUDENT = {**WEAK, "role": "student"}
KINDS = ("RGB", "L", "CMYK", "RGB")


def picture(rng, width, height):
    """A photograph's stand-in: smooth, all levels."""
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """27 images in 3 classes: RGB, grey and CMYK JPEG, and PNG, of several shapes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(27):
        place = root / f"class{i // 9}"
        place.mkdir(exist_ok=True)
        image = picture(rng, 48 + 3 * (i % 5), 40 + 4 * (i % 7)).convert(KINDS[i % 4])
        image.save(place / f"{i:02d}.{'png' if i % 4 == 3 else 'jpg'}")
    return root


def keep(images, view, generator):
    return images


def noise(images, view, generator):
    return images + rand(len(images), generator=generator).view(-1, 1, 1, 1)


def config(root, batch_size=8, seed=3, device="cpu", **more):
    return OmegaConf.create(
        {
            "data": {"dataset": "custom", "train_path": str(root), "num_workers": 1, **more},
            "optimizer": {"batch_size": batch_size},
            "dali": {"device": device},
            "performance": {"disable_channel_last": True},
            "seed": seed,
        }
    )


def make(root, views=(STUDENT, WEAK), rank=0, ranks=1, colour=keep, on="cpu", **more):
    cfg = config(root, **more)
    dataset, place = data.build_dataset(cfg, "pretrain"), {"rank": rank, "world_size": ranks}
    recipe = read(list(views))
    loader = dali.DaliLoader(cfg, recipe, dataset, device=on, **place)
    loader.draw_colour = colour or loader.draw_colour
    return loader


def epochs(loader, count):
    """As Lightning goes through them."""
    for epoch in range(count):
        loader.set_epoch(epoch)
        yield list(loader)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_epochs_and_ranks(folder, ranks):
    """Each epoch has the full number of batches, no image twice, and every image comes up."""
    loaders = [make(folder, batch_size=4, rank=rank, ranks=ranks) for rank in range(ranks)]
    seen = set()
    for epochs_of_ranks in zip(*(epochs(loader, 8) for loader in loaders)):
        epoch = [torch.cat([batch[0] for batch in batches]) for batches in epochs_of_ranks]
        assert all(len(indexes) == 4 * (27 // (4 * ranks)) for indexes in epoch)
        assert len(torch.cat(epoch).unique()) == sum(map(len, epoch))
        seen |= set(torch.cat(epoch).tolist())
    assert seen == set(range(27))
    assert len(loaders[0]) == 27 // (4 * ranks)


def test_indexes_and_targets_are_image_folders(folder):
    from torchvision.datasets import ImageFolder

    whole = {"role": "student", "crop_size": 40}
    samples = ImageFolder(str(folder)).samples
    for indexes, (first, second), targets in make(folder, [whole, {**whole, "role": "teacher"}]):
        assert first.shape == second.shape == (8, 3, 40, 40)
        assert first.dtype == torch.float32
        assert indexes.dtype == targets.dtype == torch.int64
        assert targets.tolist() == [samples[i][1] for i in indexes]
        mean = torch.tensor([np.asarray(load_image(samples[i][0])).mean() for i in indexes]) / 255
        assert (first.mean((1, 2, 3)) - mean).abs().max() < 0.06


def test_no_labels(folder):
    (batch,) = (b for b in make(folder, batch_size=20, no_labels=True))
    assert batch[2].tolist() == [-1] * 20


def test_without_a_crop_the_centre_is_resized(tmp_path):
    rng = np.random.default_rng(0)
    for i, size in enumerate([(80, 60), (60, 80), (64, 64), (32, 32)]):
        (tmp_path / "a").mkdir(exist_ok=True)
        picture(rng, *size).save(tmp_path / "a" / f"{i}.png")
    whole = {"role": "student", "crop_size": 32}
    (batch,) = make(tmp_path, [whole, {**whole, "role": "teacher"}], batch_size=4)
    theirs = transforms.Compose(
        [
            transforms.Resize(32, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
        ]
    )
    for index, image in zip(batch[0], batch[1][0]):
        wanted = theirs(load_image(tmp_path / "a" / f"{index}.png"))
        error = (image - wanted).abs() * 255
        assert error.mean() < (0.01 if index == 3 else 2.0)  # the last needs no resize at all
        assert torch.equal(image, batch[1][1][batch[0].tolist().index(index)])


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "L"), ("a.jpg", "CMYK"), ("a.png", "P"), ("a.png", "RGBA"), ("a.png", "LA"),
     ("a.bmp", "RGB"), ("a.webp", "RGB"), ("a.tif", "RGB"), ("a.png", "I;16")],
)  # fmt: skip
def test_every_kind_of_file_decodes_to_the_bit(tmp_path, name, mode):
    image = picture(np.random.default_rng(0), 32, 32)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / name)
    whole = {"role": "student", "crop_size": 32}
    (batch,) = make(tmp_path, [whole, {**whole, "role": "teacher"}], batch_size=1)
    got = (batch[1][0][0] * 255).round().permute(1, 2, 0).byte().numpy()
    assert np.array_equal(got, np.asarray(load_image(tmp_path / "a" / name)))


def test_exif_orientation_is_left_alone_as_by_the_other_back_ends(tmp_path):
    (tmp_path / "a").mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    picture(np.random.default_rng(0), 32, 32).save(tmp_path / "a" / "a.jpg", exif=exif)
    whole = {"role": "student", "crop_size": 32}
    (batch,) = make(tmp_path, [whole, {**whole, "role": "teacher"}], batch_size=1)
    got = (batch[1][0][0] * 255).round().permute(1, 2, 0).byte().numpy()
    assert np.array_equal(got, np.asarray(load_image(tmp_path / "a" / "a.jpg")))


@pytest.mark.parametrize(
    ("preset", "sizes"),
    [("multicrop4", [28, 28, 20, 16, 12]), ("multicrop5", [28, 28, 24, 20, 16, 12])],
)
def test_multicrop(folder, preset, sizes):
    loader = make(folder, [{"preset": preset, "crop_size": 28}])
    for _, views, _ in loader:
        assert [view.shape[-1] for view in views] == sizes


def same(a, b):
    return all(
        torch.equal(x[0], y[0]) and all(map(torch.equal, x[1], y[1])) and torch.equal(x[2], y[2])
        for x, y in zip(a, b, strict=True)
    )


def test_resumed_in_mid_epoch_to_the_bit(folder):
    """Order, crops, flips and the colour's generator depend on seed, epoch and step only."""
    whole = make(folder, colour=noise)
    first, second, third = epochs(whole, 3)
    assert not same(first, second)
    stopped = make(folder, colour=noise)
    stopped.set_epoch(1)
    for _ in zip(range(2), stopped):
        pass
    late = make(folder, colour=noise)
    late.load_state_dict(stopped.state_dict())
    late.set_epoch(1)
    assert same(list(late), second[2:])
    late.set_epoch(2)
    assert same(list(late), third)
    assert not same(list(make(folder, colour=noise, seed=4)), first)


def test_ranks_see_what_one_process_sees_in_the_same_views(folder):
    one = next(iter(make(folder, colour=noise)))
    share = {"batch_size": 4, "ranks": 2, "colour": noise}
    ranks = [next(iter(make(folder, rank=rank, **share))) for rank in (0, 1)]
    assert torch.equal(torch.cat([batch[0] for batch in ranks]), one[0])
    for whole, *parts in zip(one[1], *(batch[1] for batch in ranks)):
        assert torch.equal(torch.cat(parts), whole)


def test_an_epoch_left_early_leaves_nothing_behind(folder):
    first, second = epochs(make(folder), 2)
    early = make(folder)
    next(iter(early))
    early.set_epoch(1)
    assert same(list(early), second)
    early.set_epoch(0)
    kept = list(early)  # batches stay valid while later ones are drawn
    assert same(kept, first)


def test_few_images(folder):
    cfg = config(folder)
    dataset = data.build_dataset(cfg, "pretrain")
    whole = {"role": "student", "crop_size": 28}
    rows = [25, 0, 7]
    whole.update(mean=[0.0] * 3, std=[1.0] * 3)
    views = dali.few(cfg, read([whole, WEAK]), dataset, rows)
    assert [tuple(view.shape) for view in views] == [(3, 3, 28, 28), (3, 3, 24, 24)]
    for row, view in zip(rows, views[0]):
        assert abs(view.mean() - np.asarray(dataset[row][0]).mean() / 255) < 0.06


def test_colour_is_the_batched_back_ends(folder):
    """By default the crops go through batched.apply_colour, on a generator of each step's own."""
    jitter = {"prob": 1.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    views = [{**STUDENT, "color_jitter": jitter, "gaussian_blur": {"prob": 0.5}}, WEAK]
    weak = read(views).crops[1]
    plain = next(iter(make(folder, views)))[1]
    drawn, again = (next(iter(make(folder, views, colour=None)))[1] for _ in range(2))
    assert all(map(torch.equal, drawn, again))
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (weak.mean, weak.std))
    assert torch.allclose(drawn[1], (plain[1] - mean) / std, atol=1e-5)
    changed = (drawn[0] * std + mean - plain[0]).abs().mean((1, 2, 3))
    assert (changed > 1 / 255).all()


def test_image_size_comes_first(folder):
    whole = {"role": "student", "crop_size": 16}
    views = [whole, {**whole, "role": "teacher"}]
    (batch,) = make(folder, views, batch_size=20, image_size=16)
    images = data.build_dataset(config(folder, image_size=16), "pretrain")
    for index, view in zip(batch[0], batch[1][0]):
        wanted = torch.tensor(np.asarray(images[index][0])).permute(2, 0, 1) / 255
        assert ((view - wanted).abs() * 255).mean() < 2.5


def test_a_file_that_does_not_decode_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(4):
        picture(np.random.default_rng(i), 32, 32).save(tmp_path / "a" / f"{i}.jpg")
    bad = tmp_path / "a" / "2.jpg"
    bad.write_bytes(b"no image at all")
    with pytest.raises(UserError, match=r"cannot decode .*/a/2\.jpg;"):
        list(make(tmp_path, batch_size=4))


def test_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match=r"optimizer\.batch_size"):
        make(folder, batch_size=28)
    with pytest.raises(UserError, match=r"set dali\.device=cpu"):
        make(folder, device="gpu")
    images = {"x": np.zeros((9, 8, 8, 3), np.uint8), "y": np.zeros(9, np.int64)}
    np.savez(tmp_path / "a.npz", **images)
    with pytest.raises(UserError, match="folders of image files"):
        make(tmp_path / "a.npz", dataset="npz")


@pytest.mark.gpu
def test_gpu_pipeline_against_the_cpus(folder):
    on_gpu = make(folder, device="gpu", on="cuda")
    for ours, theirs in zip(on_gpu, make(folder), strict=True):
        assert torch.equal(ours[0].cpu(), theirs[0])
        for a, b in zip(ours[1], theirs[1]):
            assert a.is_cuda
            assert ((a.cpu() - b).abs() * 255).mean() < 1.5  # the GPU's JPEG decoder is another
