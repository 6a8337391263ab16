import os
from dataclasses import replace

import pytest
from PIL import Image

from ressl_plugin import data
from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.utils.errors import UserError


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The layout of the download: 3 classes, 4 training and 2 validation images each."""
    row = replace(DATASETS["tiny-imagenet"], images=(12, 6))
    monkeypatch.setitem(DATASETS, "tiny-imagenet", row)
    root = tmp_path / "tiny-imagenet-200"
    image = Image.new("RGB", (4, 4))
    for c in range(3):
        (root / f"train/n{c}/images").mkdir(parents=True)
        (root / f"train/n{c}/n{c}_boxes.txt").touch()
        for i in range(4):
            image.save(root / f"train/n{c}/images/n{c}_{i}.JPEG")
    (root / "val/images").mkdir(parents=True)
    lines = []
    for i in range(6):
        image.save(root / f"val/images/val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\tn{i % 3}\t0\t0\t3\t3\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return root


def val_files(root):
    return sorted(p.relative_to(root / "val").as_posix() for p in root.glob("val/**/*.JPEG"))


ARRANGED = [f"n{c}/val_{i}.JPEG" for c in range(3) for i in (c, c + 3)]


def test_arrange_then_open(tiny, config):
    assert data.arrange_tiny_imagenet(tiny.parent) == tiny
    assert val_files(tiny) == ARRANGED and not (tiny / "val/images").exists()
    cfg = config("tiny-imagenet", tiny / "train", tiny / "val")
    assert len(data.build_dataset(cfg, "train")) == 12
    val = data.build_dataset(cfg, "val")
    assert (val.classes, val.targets) == (["n0", "n1", "n2"], [0, 0, 1, 1, 2, 2])


def test_idempotent(tiny):
    data.arrange_tiny_imagenet(tiny)
    data.arrange_tiny_imagenet(tiny)
    assert val_files(tiny) == ARRANGED


def test_interrupted_and_run_again(tiny, monkeypatch):
    rename, calls = os.rename, []

    def interrupted(source, target):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(rename(source, target))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", interrupted)
        data.arrange_tiny_imagenet(tiny)
    assert len(val_files(tiny)) == 6 and val_files(tiny) != ARRANGED
    data.arrange_tiny_imagenet(tiny)
    assert val_files(tiny) == ARRANGED


def edit(tiny, old, new):
    file = tiny / "val/val_annotations.txt"
    file.write_text(file.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: (t / "train/n1/images/n1_0.JPEG").unlink(), "train has 11 images, not 12"),
        (lambda t: (t / "val/images/val_2.JPEG").unlink(), "val has 5 images, not 6"),
        (
            lambda t: (t / "val/images/val_2.JPEG").rename(t / "val/x.JPEG"),
            r"val_2.JPEG is neither in images/",
        ),
        (lambda t: (t / "val/val_annotations.txt").unlink(), "val_annotations.txt: not a readable"),
        (lambda t: edit(t, "val_0.JPEG\tn0", "val_0.JPEG\tdog"), "line 1: class 'dog' has no"),
        (lambda t: edit(t, "val_0.JPEG", "../val_0.JPEG"), "is no file name"),
        (lambda t: edit(t, "val_0.JPEG", "val_3.JPEG"), "lists 5 images, not 6"),
        (lambda t: edit(t, "\t", " "), "line 1"),
    ],
)
def test_mistakes_are_found_before_anything_moves(tiny, spoil, message):
    spoil(tiny)
    before = val_files(tiny)
    with pytest.raises(UserError, match=message):
        data.arrange_tiny_imagenet(tiny)
    assert val_files(tiny) == before


def test_a_file_in_both_places_is_kept(tiny):
    (tiny / "val/n0").mkdir()
    (tiny / "val/n0/val_0.JPEG").write_text("another")
    (tiny / "val/images/val_5.JPEG").unlink()  # as many as it should be
    with pytest.raises(UserError, match="is both in images/ and n0/"):
        data.arrange_tiny_imagenet(tiny)
    assert len(val_files(tiny)) == 6


def test_an_unlisted_file_is_kept(tiny):
    (tiny / "val/images/mine.txt").touch()
    with pytest.raises(UserError, match=r"still holds mine\.txt"):
        data.arrange_tiny_imagenet(tiny)
    assert (tiny / "val/images/mine.txt").exists()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip"):
        data.arrange_tiny_imagenet(tmp_path)
