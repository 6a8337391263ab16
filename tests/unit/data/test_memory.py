import hashlib
import json
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ressl_plugin import data
from ressl_plugin.data import memory
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded, in any order."""
    files, load = [], memory.load_image
    monkeypatch.setattr(
        memory, "load_image", lambda path, *a: (files.append(path), load(path, *a))[1]
    )
    return files


@pytest.fixture
def build(make_folder, config, tmp_path):
    root = make_folder()

    def build(**options):
        dataset = data.build_dataset(config("custom", root, **options), "pretrain")
        return data.MemoryImages(dataset, tmp_path / "cache", progress=False)

    build.root, build.cache = root, tmp_path / "cache"
    return build


def test_pixels_labels_and_classes(build):
    memory_images = build()
    assert memory_images.images.shape == (6, 8, 8, 3)
    assert memory_images.images.dtype == torch.uint8
    assert memory_images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert memory_images.classes == ["a", "b"]
    for i in range(3):
        expected = np.asarray(Image.open(build.root / "b" / f"{i}.png"))
        assert (memory_images.images[3 + i].numpy() == expected).all()


def test_the_second_time_nothing_is_decoded(build, decoded):
    first = build().images.clone()
    assert len(decoded) == 6
    assert torch.equal(build().images, first)
    assert len(decoded) == 6
    assert len(list(build.cache.glob("*.npy"))) == 1


def new_pixels(root):
    Image.new("RGB", (8, 8), "red").save(root / "a" / "1.png")


def test_a_name_that_is_no_utf_8(build, decoded):
    plain = build.root / "a" / "2.png"
    os.rename(plain, os.fsencode(build.root / "a") + b"/\xff\xfe.png")
    first = build().images.clone()
    assert len(decoded) == 6 and torch.equal(build().images, first)
    assert len(decoded) == 6


def test_the_key_of_ordinary_names_is_as_it_was(build):
    """Caches of earlier versions stay valid."""
    os.rename(build.root / "a" / "1.png", build.root / "a" / "Größe 1.png")
    build()
    sha = hashlib.sha256(np.asarray([0, 0, 0, 1, 1, 1], np.int64).tobytes())
    for file in sorted(build.root.glob("*/*.png")):
        stat, name = file.stat(), file.relative_to(build.root)
        sha.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    where = f"{build.root.resolve()} None None"
    name = f"images-{hashlib.sha256(where.encode()).hexdigest()[:12]}.json"
    assert json.loads((build.cache / name).read_text())["files"] == sha.hexdigest()


def same_size_other_time(root):
    stat = (root / "a" / "1.png").stat()
    os.utime(root / "a" / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize(
    "change",
    [
        new_pixels,
        same_size_other_time,
        lambda root: (root / "a" / "1.png").rename(root / "a" / "9.png"),
        lambda root: (root / "a" / "1.png").rename(root / "b" / "9.png"),
        lambda root: (root / "a" / "1.png").unlink(),
    ],
)
def test_a_changed_file_invalidates_the_cache(build, decoded, change):
    build()
    change(build.root)
    decoded.clear()
    images = build()
    dataset = data.FolderImages(build.root)
    assert len(decoded) == len(dataset) == len(images)
    for i, (image, target) in enumerate(dataset):
        assert (images.images[i].numpy() == np.asarray(image)).all()
        assert images.labels[i] == target
    assert len(list(build.cache.glob("*.npy"))) == 1


def cut_array(cache):
    file = next(cache.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-10])


def zeros(cache):
    """What a crash of the machine leaves: the size, and not the pixels."""
    file = next(cache.glob("*.npy"))
    header = file.read_bytes()[:128]
    file.write_bytes(header + bytes(file.stat().st_size - 128))


def one_pixel(cache):
    file = next(cache.glob("*.npy"))
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def cut_sidecar(cache):
    next(cache.glob("*.json")).write_text("{")


def old_version(cache):
    file = next(cache.glob("*.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "version": 0}))


@pytest.mark.parametrize("damage", [cut_array, zeros, one_pixel, cut_sidecar, old_version])
def test_a_damaged_cache_is_made_anew(build, decoded, damage):
    first = build().images.clone()
    damage(build.cache)
    assert torch.equal(build().images, first)
    assert len(decoded) == 12


def test_an_interrupted_write_leaves_no_cache(build, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(memory, "load_image", interrupted)
        build()
    assert not list(build.cache.glob("*.npy*")) and not list(build.cache.glob("*.json"))
    assert len(build()) == 6


def test_several_sizes_need_image_size(build):
    Image.new("RGB", (12, 10), "red").save(build.root / "b" / "1.png")
    with pytest.raises(UserError, match=r"1\.png is 12x10 pixels.*is 8x8.*data\.image_size"):
        build()
    images = build(image_size=6).images
    assert images.shape == (6, 6, 6, 3)
    assert (images[4] == torch.tensor([255, 0, 0], dtype=torch.uint8)).all()


def test_image_size_equals_what_the_data_set_gives(build, config):
    dataset = data.build_dataset(config("custom", build.root, image_size=5), "pretrain")
    images = build(image_size=5).images
    for i, (image, _) in enumerate(dataset):
        assert (images[i].numpy() == np.asarray(image)).all()


def test_a_bad_image_is_named(build):
    (build.root / "b" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"1\.png cannot be used \(zero-byte"):
        build()


def test_no_labels(build):
    assert build(no_labels=True).labels.tolist() == [-1] * 6


def test_an_array_of_the_right_size_makes_no_file(tmp_path, config):
    np.savez(tmp_path / "d.npz", x=np.full((4, 6, 6, 3), 9, np.uint8), y=[0, 1, 1, 0])
    plain = data.build_dataset(config("npz", tmp_path / "d.npz"), "pretrain")
    assert data.MemoryImages(plain, tmp_path / "c").images.shape == (4, 6, 6, 3)
    assert not (tmp_path / "c").exists()
    resized = data.build_dataset(config("npz", tmp_path / "d.npz", image_size=3), "pretrain")
    images = data.MemoryImages(resized, tmp_path / "c", progress=False)
    assert images.images.shape == (4, 3, 3, 3) and (images.images == 9).all()
    assert [len(list((tmp_path / "c").glob(f"*.{s}"))) for s in ("npy", "json")] == [1, 1]


def test_a_write_to_the_tensor_stays_out_of_the_file(build):
    first = build()
    expected = first.images.clone()
    first.images.zero_()
    assert torch.equal(build().images, expected)


def test_to_device(build):
    images, labels = build().to(torch.device("cpu"))
    assert images.shape == (6, 8, 8, 3) and labels.shape == (6,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_gpu(build):
    held = build()
    images, labels = held.to("cuda")
    assert images.is_cuda and labels.is_cuda and torch.equal(images.cpu(), held.images)


def test_memory_bytes(build, config):
    for options in ({}, {"image_size": 5}):
        dataset = data.build_dataset(config("custom", build.root, **options), "pretrain")
        assert data.memory_bytes(dataset) == build(**options).nbytes


def test_unwritable_cache_folder(build):
    build.cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"image cache .* cannot be written"):
        build()


def _decode(root, cache, log):
    from omegaconf import OmegaConf

    load = memory.load_image

    def logged(path, *args):
        with log.open("a") as file:
            file.write(f"{path}\n")
        return load(path, *args)

    memory.load_image = logged
    cfg = OmegaConf.create({"data": {"dataset": "custom", "train_path": str(root)}})
    data.MemoryImages(data.build_dataset(cfg, "pretrain"), cache, progress=False)


def test_of_several_ranks_one_decodes(make_folder, tmp_path):
    root, log = make_folder(), tmp_path / "log"
    context = multiprocessing.get_context("fork")  # quick; nothing here has threads running
    ranks = [context.Process(target=_decode, args=(root, tmp_path / "c", log)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 6
