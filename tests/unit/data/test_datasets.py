import hashlib

import numpy as np
import pytest
import torch
from helpers import fake_cifar
from PIL import Image
from torchvision import datasets as tv

from ressl_plugin import data
from ressl_plugin.utils.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    return fake_cifar(tmp_path, monkeypatch, train=6, test=4)


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """STL-10's own format: 3 labelled, 2 test, 4 unlabelled images."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    lists = {"train_list": [], "test_list": []}
    for split, count in (("train", 3), ("test", 2), ("unlabeled", 4)):
        arrays = {"X": RNG.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)}
        if split != "unlabeled":
            arrays["y"] = np.arange(1, count + 1, dtype=np.uint8)
        for key, array in arrays.items():
            (folder / f"{split}_{key}.bin").write_bytes(array.tobytes())
            md5 = hashlib.md5(array.tobytes()).hexdigest()
            lists["test_list" if split == "test" else "train_list"].append(
                [f"{split}_{key}.bin", md5]
            )
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    for name, value in lists.items():
        monkeypatch.setattr(tv.STL10, name, value)
    return tmp_path


def test_cifar(cifar, config):
    cfg = config("cifar10", cifar)
    train, val = data.build_dataset(cfg, "train", need_labels=True), data.build_dataset(cfg, "val")
    assert (len(train), len(val)) == (6, 4)
    assert train.targets == [0, 1, 2, 3, 4, 5] and train.classes[3] == "class 3"
    image, target = train[4]
    assert image.size == (32, 32) and target == 4
    assert (np.asarray(image) == train.data[4]).all()


def test_stl10(stl10, config):
    cfg = config("stl10", stl10, image_size=64)
    counts = {split: len(data.build_dataset(cfg, split)) for split in ("pretrain", "train", "val")}
    assert counts == {"pretrain": 7, "train": 3, "val": 2}
    assert data.build_dataset(cfg, "pretrain").targets == [0, 1, 2, -1, -1, -1, -1]
    train = data.build_dataset(cfg, "train", need_labels=True)
    assert train[0][0].size == (64, 64) and train.classes[9] == "class 9"
    (images, _) = next(iter(data.evaluation_loader(cfg, "val")))
    assert images.shape == (2, 3, 64, 64)


def test_stl10_in_memory_keeps_its_splits_apart(stl10, config):
    cfg = config("stl10", stl10, image_size=64)
    for split, count in (("pretrain", 7), ("train", 3), ("val", 2), ("pretrain", 7)):
        dataset = data.build_dataset(cfg, split)
        images = data.MemoryImages(dataset, progress=False).images
        assert images.shape == (count, 64, 64, 3)
        assert (images[1].numpy() == np.asarray(dataset[1][0])).all()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10"])
def test_missing_downloads(name, config, tmp_path):
    with pytest.raises(UserError, match=r"is not there; data\.download=true"):
        data.build_dataset(config(name, tmp_path), "train")


def test_damaged_cifar(cifar, config):
    (cifar / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    with pytest.raises(UserError, match="is incomplete or damaged"):
        data.build_dataset(config("cifar10", cifar), "val")


def test_image_folder(make_folder, config):
    cfg = config("custom", make_folder(), make_folder("val", count=2))
    train, val = data.build_dataset(cfg, "train"), data.build_dataset(cfg, "val", need_labels=True)
    assert train.targets == [0, 0, 0, 1, 1, 1] and train.classes == ["a", "b"]
    assert val.targets == [0, 0, 1, 1] and val[3][0].mode == "RGB"


def test_it_lists_what_torchvision_lists(make_folder, config):
    root = make_folder()
    (root / "a" / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(root / "a" / "deep" / "er" / "x.JPG", format="jpeg")
    (root / "b" / "Thumbs.db").touch()
    (root / "loose.png").touch()
    dataset = data.build_dataset(config("custom", root), "pretrain")
    assert dataset.samples == tv.ImageFolder(root).samples and len(dataset) == 7
    assert dataset.ignored == "1 .png, 1 .db"


def test_without_labels(make_folder, config):
    root = make_folder()
    Image.new("RGB", (4, 4)).save(root / "loose.png")
    (root / "readme.txt").touch()
    dataset = data.build_dataset(config("custom", root, no_labels=True), "pretrain")
    assert len(dataset) == 7 and set(dataset.targets) == {-1} and dataset.ignored == "1 .txt"
    assert dataset.samples == sorted(dataset.samples)
    with pytest.raises(UserError, match=r"7 of 7 images have no label.*no_labels"):
        data.build_dataset(config("custom", root, no_labels=True), "train", need_labels=True)


def test_transform(make_folder, config):
    cfg = config("custom", make_folder())
    dataset = data.build_dataset(cfg, "pretrain", lambda image: [image.size, image.mode])
    assert dataset[4] == ([(8, 8), "RGB"], 1) and len(dataset) == 6


def test_image_size(make_folder, config):
    root = make_folder(size=(20, 10))
    dataset = data.build_dataset(config("custom", root, image_size=5), "pretrain")
    assert dataset[0][0].size == (5, 5)


def test_fraction_is_the_hosts_draw(make_folder, config):
    from sklearn.model_selection import train_test_split

    root = make_folder(count=10)
    kept = data.build_dataset(config("custom", root, fraction=0.4), "pretrain")
    samples = tv.ImageFolder(root).samples
    files, _, labels, _ = train_test_split(
        [file for file, _ in samples], [label for _, label in samples],
        train_size=0.4, stratify=[label for _, label in samples], random_state=42,
    )  # fmt: skip
    assert kept.samples == list(zip(files, labels)) and kept.targets == labels
    assert len(data.build_dataset(config("custom", root, fraction=0.4), "train")) == 20
    assert len(data.build_dataset(config("custom", root, fraction=1.0), "pretrain")) == 20


@pytest.mark.parametrize("fraction", [1.5, 0.01])
def test_bad_fraction(make_folder, config, fraction):
    with pytest.raises(UserError, match=r"data\.fraction"):
        data.build_dataset(config("custom", make_folder(), fraction=fraction), "pretrain")


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("cifar11", {}, r"data\.dataset=cifar11; it is one of cifar10, "),
        ("custom", {"format": "h5"}, r"data\.format=h5"),
    ],
)
def test_bad_values(make_folder, config, dataset, options, message):
    with pytest.raises(UserError, match=message):
        data.build_dataset(config(dataset, make_folder(), **options), "train")


@pytest.mark.parametrize(
    ("dataset", "advice"),
    [("digits", "ressl data digits"), ("tiny-imagenet", "tiny-imagenet-200.zip"),
     ("imagenet", "image-net.org"), ("custom", "path of the images")],
)  # fmt: skip
def test_missing_directory(config, tmp_path, dataset, advice):
    with pytest.raises(UserError, match=rf"data\.train_path=.*gone: no such.*{advice}"):
        data.build_dataset(config(dataset, tmp_path / "gone"), "train")


def test_val_path_not_set(make_folder, config):
    with pytest.raises(UserError, match=r"data\.val_path is not set"):
        data.build_dataset(config("custom", make_folder()), "val")


def test_no_class_folders(config, tmp_path):
    (tmp_path / "1.png").touch()
    with pytest.raises(UserError, match=r"no class folders.*data\.no_labels"):
        data.build_dataset(config("custom", tmp_path), "train")


def test_a_flat_folder_of_validation_images_without_labels(make_folder, config, tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "1.png")
    cfg = config("custom", make_folder(), tmp_path / "flat", no_labels=True)
    assert data.build_dataset(cfg, "val").targets == [-1]
    with pytest.raises(UserError, match="1 of 1 images have no label"):
        data.build_dataset(cfg, "val", need_labels=True)
    cfg.data.val_path = cfg.data.train_path = str(make_folder("labelled"))
    assert data.build_dataset(cfg, "pretrain").targets == [-1] * 6
    cfg.data.train_path = str(tmp_path / "train")
    assert data.build_dataset(cfg, "val").targets == [0, 0, 0, 1, 1, 1]


def test_the_folder_above_train_and_val(make_folder, config):
    root = make_folder().parent
    with pytest.raises(UserError, match=r"holds train; give .*train"):
        data.build_dataset(config("custom", root), "train")
    (root / "test").mkdir()
    with pytest.raises(UserError, match=r"holds test, train; give .*/train$"):
        data.build_dataset(config("custom", root), "train")
    with pytest.raises(UserError, match=r"holds test, train; give .*/test$"):
        data.build_dataset(config("custom", None, root), "val")


def test_empty_class_folder(make_folder, config):
    root = make_folder()
    (root / "c").mkdir()
    with pytest.raises(UserError, match=r"without an image, or another .*: .*/c; a class"):
        data.build_dataset(config("custom", root), "train")


def test_no_images_without_labels(config, tmp_path):
    (tmp_path / "readme.txt").touch()
    with pytest.raises(UserError, match=r"holds no image \(1 \.txt are ignored\)"):
        data.build_dataset(config("custom", tmp_path, no_labels=True), "pretrain")


def test_too_many_classes(make_folder, config):
    root = make_folder(classes=[str(i) for i in range(11)], count=1)
    with pytest.raises(UserError, match=r"11 class folders; digits has 10"):
        data.build_dataset(config("digits", root), "train")


def test_classes_of_val_and_train_differ(make_folder, config):
    cfg = config("custom", make_folder(classes="abc"), make_folder("val", classes="abd"))
    with pytest.raises(UserError, match=r"it lacks c, it has besides d; .*the 3 class folders"):
        data.build_dataset(cfg, "val")


def test_labels_of_val_beyond_train_in_npz(config, tmp_path):
    for name, labels in (("train", [0, 1]), ("val", [0, 2])):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((2, 4, 4, 3), np.uint8), y=labels)
    with pytest.raises(UserError, match=r"has label 2"):
        data.build_dataset(config("npz", tmp_path / "train.npz", tmp_path / "val.npz"), "val")


def test_a_bad_file_is_named_by_the_loader(make_folder, config):
    root = make_folder()
    (root / "a" / "0.png").write_bytes(b"")
    cfg = config("custom", root)
    for workers in (0, 1):
        cfg.data.num_workers = workers
        with pytest.raises(UserError, match=r"a/0\.png cannot be used"):
            list(data.evaluation_loader(cfg, "train"))


@pytest.mark.parametrize(
    ("dataset", "crop", "size", "shape"),
    [
        ("cifar10", 32, (32, 32), (32, 32)),
        ("cifar10", 64, (32, 32), (64, 64)),
        ("cifar10", 224, (32, 32), (224, 224)),
        ("stl10", 64, (96, 96), (64, 64)),
        ("tiny-imagenet", 64, (64, 64), (64, 64)),
        ("digits", 16, (8, 8), (16, 16)),
        ("custom", 32, (60, 40), (32, 32)),
        ("imagenet", 224, (500, 300), (224, 224)),
        ("custom", 112, (200, 300), (112, 112)),
    ],
)
def test_evaluation_sizes(config, dataset, crop, size, shape):
    image = data.evaluation_transform(config(dataset, "x", crop=crop))(Image.new("RGB", size))
    assert image.shape == (3, *shape)


def test_imagenets_margin_scales_with_the_crop(config):
    # of 112 x 256/224 = 128 pixels the middle 112 stay: a border of 8 is cut off
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[8:120, 8:120] = 255
    cfg = config("custom", "x", crop=112)
    cfg.augmentations[0].update(mean=[0.0] * 3, std=[1.0] * 3)
    assert (data.evaluation_transform(cfg)(Image.fromarray(pixels)) == 1).all()


def test_normalisation_is_the_runs(config):
    image = Image.new("RGB", (32, 32), (255, 0, 0))
    cfg = config("cifar10", "x", crop=32)
    value = data.evaluation_transform(cfg)(image)[:, 0, 0]
    torch.testing.assert_close(value[0].item(), (1 - 0.4914) / 0.2470, atol=1e-5, rtol=0)
    cfg.augmentations[0].update(mean=[0.5] * 3, std=[0.25] * 3)
    assert data.evaluation_transform(cfg)(image)[:, 0, 0].tolist() == [2, -2, -2]


def test_evaluation_loader_keeps_order_and_all(make_folder, config):
    cfg = config("custom", make_folder())
    batches = list(data.evaluation_loader(cfg, "train"))
    assert [len(images) for images, _ in batches] == [4, 2]
    assert torch.cat([targets for _, targets in batches]).tolist() == [0, 0, 0, 1, 1, 1]
    assert batches[0][0].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "place", "hint"),
    [("custom", "datasets/digits/train", "`ressl data digits DIR` writes it"),
     ("custom", "tiny-imagenet-200/train", "`ressl data tiny-imagenet DIR`"),
     ("custom", "holiday", r"give the path of the images \(`ressl data digits DIR` writes some"),
     ("cifar10", "digits", "data.download=true fetches it"),
     ("cifar10", "cifar10.npz", "`ressl data cifar10 FILE --from ARCHIVE` writes one"),
     ("custom", "mine.npz", r"np.savez\(FILE, x=…\) writes one")],
)  # fmt: skip
def test_data_that_are_not_there_are_to_be_had(name, place, hint, config, tmp_path):
    cfg = config(dataset=name, train_path=str(tmp_path / place), download="npz" in place)
    with pytest.raises(UserError, match=rf"no such file or directory; .*{hint}"):
        data.build_dataset(cfg, "train")


def one_split(path, names=()):
    images = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(path, x=images, y=[0, 1, 0, 1], **({"classes": names} if names else {}))
    return str(path)


def test_nobody_validates_on_the_training_images(make_folder, config, tmp_path, monkeypatch):
    """One .npz without x_test, one folder: kNN and linear accuracy would be of the training set."""
    file, folder = one_split(tmp_path / "all.npz"), str(make_folder())
    for name, path, val in (
        ("npz", file, file),
        ("cifar10", file, None),
        ("custom", folder, folder),
    ):
        cfg = config(name, path, val_path=val)
        data.build_dataset(cfg, "train")
        with pytest.raises(UserError, match="these are the training images"):
            data.build_dataset(cfg, "val")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="these are the training images"):
        data.build_dataset(config("npz", "~/all.npz", val_path="~/all.npz"), "val")


def test_a_label_means_the_same_in_both_files(config, tmp_path):
    train = one_split(tmp_path / "train.npz", ["cat", "dog"])
    for names, fits in ((["dog", "cat"], False), (["cat", "dog"], True), ((), True)):
        val = one_split(tmp_path / "val.npz", names)
        cfg = config("npz", train, val_path=val)
        if fits:
            assert data.build_dataset(cfg, "val").classes == ["cat", "dog"]
        else:
            with pytest.raises(
                UserError, match="has the classes dog, cat; the training set has cat"
            ):
                data.build_dataset(cfg, "val")


def test_those_who_fetch_wait_for_each_other(cifar, config, monkeypatch):
    """torchrun starts all processes at once, and torchvision opens the archive to write."""
    held = []

    class Locked(tv.CIFAR10):
        def __init__(self, root, **more):
            held.append((root / ".download.lock").exists())
            super().__init__(root, **more)

    monkeypatch.setattr(tv, "CIFAR10", Locked)
    for download in (False, True):
        data.build_dataset(config("cifar10", cifar, download=download), "val")
    assert held == [False, True]
