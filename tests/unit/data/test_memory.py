import numpy as np
import pytest
import torch
from PIL import Image

from ressl_plugin import data
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def build(make_folder, config):
    root = make_folder()

    def build(**options):
        dataset = data.build_dataset(config("custom", root, **options), "pretrain")
        return data.MemoryImages(dataset, progress=False)

    build.root = root
    return build


def test_pixels_and_labels(build):
    memory_images = build()
    assert memory_images.images.shape == (6, 8, 8, 3)
    assert memory_images.images.dtype == torch.uint8
    assert memory_images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    for i in range(3):
        expected = np.asarray(Image.open(build.root / "b" / f"{i}.png"))
        assert (memory_images.images[3 + i].numpy() == expected).all()


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
    with pytest.raises(UserError, match=r"1\.png cannot be used \(empty"):
        build()


def test_no_labels(build):
    assert build(no_labels=True).labels.tolist() == [-1] * 6


def test_an_array_of_the_right_size_is_not_copied(tmp_path, config):
    np.savez(tmp_path / "d.npz", x=np.full((4, 6, 6, 3), 9, np.uint8), y=[0, 1, 1, 0])
    plain = data.build_dataset(config("npz", tmp_path / "d.npz"), "pretrain")
    images = data.MemoryImages(plain, progress=False).images
    assert np.shares_memory(images.numpy(), plain.data)
    resized = data.build_dataset(config("npz", tmp_path / "d.npz", image_size=3), "pretrain")
    images = data.MemoryImages(resized, progress=False).images
    assert images.shape == (4, 3, 3, 3) and (images == 9).all()


def test_oblong_arrays(tmp_path, config):
    x = np.arange(2 * 4 * 6 * 3, dtype=np.uint8).reshape(2, 4, 6, 3)
    np.savez(tmp_path / "d.npz", x=x)
    for size, shape in ((None, (2, 4, 6, 3)), (4, (2, 4, 4, 3)), (6, (2, 6, 6, 3))):
        dataset = data.build_dataset(config("npz", tmp_path / "d.npz", image_size=size), "pretrain")
        images = data.MemoryImages(dataset, progress=False).images
        assert images.shape == shape
        assert np.shares_memory(images.numpy(), dataset.data) == (size is None)


def test_more_than_memory_holds_is_refused(build, monkeypatch):
    def empty(shape, *_):
        raise MemoryError("Unable to allocate 10 TiB")

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(UserError, match=r"10 TiB; data\.backend=host"):
        build()


def test_to_device(build):
    images, labels = build().to(torch.device("cpu"))
    assert images.shape == (6, 8, 8, 3) and labels.shape == (6,)


@pytest.mark.gpu
def test_to_gpu(build):
    held = build()
    images, labels = held.to("cuda")
    assert images.is_cuda and labels.is_cuda and torch.equal(images.cpu(), held.images)
