"""The same images are the same data, wherever they lie; any other set is another."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ressl_plugin import data
from ressl_plugin.data import identity
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def identify(config):
    return lambda root, dataset="custom", **options: data.identify(
        data.build_dataset(config(dataset, root, **options), "pretrain")
    )


def test_of_a_folder(make_folder, identify):
    found = identify(make_folder())
    assert identity.is_identity(found) and (found["images"], found["classes"]) == (6, 2)
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("options", [{}, {"no_labels": True}, {"image_size": 4}, {"fraction": 0.5}])
def test_a_copy_is_the_same(make_folder, identify, tmp_path, options):
    root = make_folder()
    before = identify(root, **options)
    shutil.copytree(root, tmp_path / "else" / "where", copy_function=shutil.copy)  # other times
    assert identify(tmp_path / "else" / "where", **options) == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "a" / "1.png").unlink(), "images 6 -> 5"),
        (lambda root: Image.new("RGB", (8, 8)).save(root / "a" / "9.png"), "images 6 -> 7"),
        (lambda root: (root / "a" / "1.png").rename(root / "a" / "9.png"), "other names, sizes"),
        (lambda root: (root / "a" / "1.png").rename(root / "b" / "9.png"), "other names, sizes"),
        (lambda root: Image.new("RGB", (9, 9)).save(root / "a" / "1.png"), "other names, sizes"),
        (lambda root: shutil.copytree(root / "a", root / "c"), "images 6 -> 9, classes 2 -> 3"),
    ],
)
def test_a_change_is_another(make_folder, identify, change, said):
    root = make_folder()
    before = identify(root)
    change(root)
    assert said in identity.differences(before, identify(root))


def test_other_content_or_labels_under_the_same_names_and_sizes(make_folder, identify, tmp_path):
    """Two copies, one of them blurred, in a format that does not compress; labels the other way
    round."""
    root = make_folder()
    for file in sorted(root.rglob("*.png")):
        Image.open(file).save(file.with_suffix(".bmp"))
        file.unlink()
    before, sizes = identify(root), [f.stat().st_size for f in sorted(root.rglob("*.bmp"))]
    for file in root.rglob("*.bmp"):
        Image.new("RGB", Image.open(file).size, (9, 9, 9)).save(file)
    assert [f.stat().st_size for f in sorted(root.rglob("*.bmp"))] == sizes
    assert "content" in identity.differences(before, identify(root))
    images = np.zeros((4, 6, 6, 3), dtype=np.uint8)
    for name, labels in (("a", [0, 1, 1, 0]), ("b", [1, 0, 0, 1])):
        np.savez(tmp_path / f"{name}.npz", x=images, y=labels)
    a, b = (identify(tmp_path / f"{name}.npz", "npz") for name in "ab")
    assert "labels" in identity.differences(a, b)


def test_another_subset_is_another(make_folder, identify):
    root = make_folder(count=10)
    assert identify(root, fraction=0.5)["digest"] != identify(root)["digest"]


def test_of_an_npz_it_is_the_content(identify, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, y=[0, 1, 1, 0])
    np.savez_compressed(tmp_path / "b.npz", x=images, y=[0, 1, 1, 0])
    assert identify(tmp_path / "a.npz", "npz") == identify(tmp_path / "b.npz", "npz")
    images[0, 0, 0, 0] ^= 1
    np.savez(tmp_path / "c.npz", x=images, y=[0, 1, 1, 0])
    assert identify(tmp_path / "c.npz", "npz") != identify(tmp_path / "a.npz", "npz")


def test_a_file_that_vanishes_is_named(make_folder, config):
    dataset = data.build_dataset(config("custom", make_folder()), "pretrain")
    os.unlink(dataset.samples[4][0])
    with pytest.raises(UserError, match=r"b/1\.png is gone"):
        data.identify(dataset)


def test_it_is_kept_with_a_run(make_folder, identify, tmp_path):
    assert identity.of_run(tmp_path) is None
    found = identify(make_folder())
    identity.keep(tmp_path, found)
    assert identity.of_run(tmp_path) == found


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"5", b"[" * 100_000, b"\xff", b"{}", b'{"train": null}', b'{"train": {}}',
     b'{"train": {"images": "6", "classes": 2, "digest": "x"}}',
     b'{"train": {"images": 6, "classes": true, "digest": "x"}}'],
)  # fmt: skip
def test_a_broken_note_is_named(tmp_path, content):
    (tmp_path / identity.FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"data\.json"):
        identity.of_run(tmp_path)
