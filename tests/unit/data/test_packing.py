"""`ressl data cifar10`: the same file from every source, and nothing but the data set."""

import dataclasses
import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from ressl_plugin import data
from ressl_plugin.cli.main import main
from ressl_plugin.data import packing
from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.data.npz import checksums, read_npz
from ressl_plugin.utils.errors import UserError

CLASSES = ["apple", "bear"]


@pytest.fixture
def splits():
    """Images and labels of a data set of 12 and 4 images."""
    draw = np.random.default_rng(0)
    return {
        split: (draw.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 2)
        for split, n in (("train", 12), ("test", 4))
    }


@pytest.fixture(autouse=True)
def small_cifar(monkeypatch, splits):
    """CIFAR-10 is these images."""
    digests = tuple(packing.in_order(*splits[s])[1] for s in ("train", "test"))
    row = dataclasses.replace(DATASETS["cifar10"], classes=2, images=(12, 4), digests=digests)
    monkeypatch.setitem(DATASETS, "cifar10", row)


@pytest.fixture
def folder(tmp_path, splits):
    for split, (images, labels) in splits.items():
        for i, (image, label) in enumerate(zip(images, labels)):
            place = tmp_path / "folder" / split / CLASSES[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:02d}.png")
    return tmp_path / "folder"


@pytest.fixture
def torchvision_folder(tmp_path, splits, monkeypatch):
    """As torchvision unpacks it, in five training batches."""
    root = tmp_path / "torchvision"
    base = root / datasets.CIFAR10.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def batch(name, images, labels):
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return write(name, {"data": rows, "labels": labels.tolist()})

    images, labels = splits["train"]
    parts = np.array_split(np.arange(12), 5)
    train = [batch(f"data_batch_{i}", images[p], labels[p]) for i, p in enumerate(parts, 1)]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", train)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [batch("test_batch", *splits["test"])])
    name, md5 = write("batches.meta", {"label_names": CLASSES})
    meta = {"filename": name, "key": "label_names", "md5": md5}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return root


@pytest.fixture
def archive(tmp_path, torchvision_folder, monkeypatch):
    path = tmp_path / datasets.CIFAR10.filename
    with tarfile.open(path, "w:gz") as file:
        base = datasets.CIFAR10.base_folder
        file.add(torchvision_folder / base, base)
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5)
    return path


def test_every_source_makes_the_same_file(folder, torchvision_folder, archive, tmp_path, splits):
    sources = {"a": folder, "b": torchvision_folder, "c": archive}
    made = [packing.pack("cifar10", s, tmp_path / f"{n}.npz") for n, s in sources.items()]
    contents = [dict(np.load(path)) for path in made]
    for content in contents:
        assert content.keys() == {"x_train", "y_train", "x_test", "y_test", "classes"}
        for name, array in content.items():
            np.testing.assert_array_equal(array, contents[0][name])
    assert contents[0]["classes"].tolist() == CLASSES
    # every image is there once, with its label
    for split, (images, labels) in splits.items():
        given = sorted((i.tobytes(), int(t)) for i, t in zip(images, labels))
        x, y = contents[0][f"x_{split}"], contents[0][f"y_{split}"]
        assert sorted((i.tobytes(), int(t)) for i, t in zip(x, y)) == given


def test_an_archive_is_unpacked_beside_what_is_written(archive, tmp_path, monkeypatch):
    """Its own folder may be one for all, which cannot be written to."""
    places = []
    extract = packing.extract_archive
    monkeypatch.setattr(
        packing, "extract_archive", lambda a, to: (places.append(to), extract(a, to))
    )
    packing.pack("cifar10", archive, tmp_path / "new" / "a.npz")
    (place,) = map(Path, places)
    assert place.parent == tmp_path / "new" and not place.exists()


def test_a_val_folder_is_the_test_split(folder, tmp_path):
    (folder / "test").rename(folder / "val")
    assert len(np.load(packing.pack("cifar10", folder, tmp_path / "a.npz"))["y_test"]) == 4


def test_each_split_is_read_and_known_apart(folder, tmp_path):
    path = packing.pack("cifar10", folder, tmp_path / "a.npz")
    train, test = (read_npz(path, split=split) for split in ("train", "test"))
    content = np.load(path)
    assert (train[0] == content["x_train"]).all() and (test[1] == content["y_test"]).all()
    assert train[2] == CLASSES
    names = [name for name, _ in checksums(path)]
    assert names == ["classes.npy", "x_train.npy", "y_train.npy"]


def test_held_out_images_are_training_images(folder, tmp_path):
    whole = np.load(packing.pack("cifar10", folder, tmp_path / "a.npz"))
    part = np.load(packing.pack("cifar10", folder, tmp_path / "b.npz", hold_out=4))
    assert part["y_test"].tolist().count(0) == part["y_test"].tolist().count(1) == 2
    both = np.concatenate([part["x_train"], part["x_test"]])
    assert len(part["x_train"]) == 8
    assert {i.tobytes() for i in both} == {i.tobytes() for i in whole["x_train"]}
    for count in (3, 12, -2):
        with pytest.raises(UserError, match="--hold-out"):
            packing.pack("cifar10", folder, tmp_path / "c.npz", hold_out=count)


def test_other_images_are_refused(folder, archive, torchvision_folder, tmp_path):
    out = tmp_path / "a.npz"
    file = next((folder / "train" / "bear").glob("*.png"))
    file.rename(folder / "train" / "apple" / "moved.png")
    with pytest.raises(UserError, match="train split holds other images or labels"):
        packing.pack("cifar10", folder, out)
    (folder / "train" / "apple" / "moved.png").unlink()
    with pytest.raises(UserError, match="11 images of 2 classes; it should be 12"):
        packing.pack("cifar10", folder, out)
    Image.new("RGB", (31, 32)).save(folder / "train" / "apple" / "a.png")
    with pytest.raises(UserError, match="images are 32 x 32"):
        packing.pack("cifar10", folder, out)
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not cifar-10-python\.tar\.gz"):
        packing.pack("cifar10", archive, out)
    (torchvision_folder / "cifar-10-batches-py" / "test_batch").write_bytes(b"")
    with pytest.raises(UserError, match="incomplete or damaged"):
        packing.pack("cifar10", torchvision_folder, out)
    with pytest.raises(UserError, match="no train/ there"):
        packing.pack("cifar10", tmp_path, out)
    (tmp_path / "flat" / "train").mkdir(parents=True)
    (tmp_path / "flat" / "test").mkdir()
    with pytest.raises(UserError, match=r"0 images and no class folders; .* one folder a class$"):
        packing.pack("cifar10", tmp_path / "flat", out)
    with pytest.raises(UserError, match=r"ends in \.npz"):
        packing.pack("cifar10", folder, tmp_path / "a")
    assert not out.exists()


def test_a_run_reads_both_splits_of_one_path(folder, tmp_path, config):
    path = packing.pack("cifar10", folder, tmp_path / "a.npz")
    cfg = config("cifar10", path, path, crop=32)
    train, val = (data.build_dataset(cfg, split) for split in ("pretrain", "val"))
    assert (len(train), len(val), train.classes) == (12, 4, CLASSES)


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "a.npz"
    assert main(["data", "cifar10", str(out), "--from", str(folder), "--hold-out", "2"]) == 0
    assert capsys.readouterr().out == f"{out}\n" and len(np.load(out)["x_test"]) == 2
    assert main(["data", "cifar10", str(out)]) == 2
    assert "--from SOURCE is needed" in capsys.readouterr().err
