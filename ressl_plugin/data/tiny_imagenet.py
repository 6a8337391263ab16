"""Tiny ImageNet as it is downloaded -> an image folder."""

import os
from collections import Counter
from pathlib import Path

from ressl_plugin.data.images import is_image_name
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def arrange(root, classes=200, train_per_class=500, val_per_class=50):
    """Move val/images/* to val/<wnid>/ as val_annotations.txt says; check all counts.

    train/<wnid>/images/*.JPEG stays: image folders may be nested. Every move is one rename, and
    nothing is deleted, so it may be interrupted and run again. Returns the folder that holds
    train/ and val/ (root, or root/tiny-imagenet-200). Raises UserError naming the class or file.
    """
    root = Path(root)
    if (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    train, val = root / "train", root / "val"
    for folder in (train, val):
        if not folder.is_dir():
            raise UserError(f"{folder} is not there; unpack {URL} and give its folder")
    wnids = sorted(entry.name for entry in train.iterdir() if entry.is_dir())
    _expect(f"{train}: number of class folders", len(wnids), classes)
    for wnid in wnids:
        _expect(f"{train / wnid}: number of images", _count(train / wnid), train_per_class)
    labels = _annotations(val / "val_annotations.txt", set(wnids), val_per_class)
    for name, wnid in labels.items():  # look before anything is moved
        if (val / "images" / name).exists() == (val / wnid / name).exists():
            both = (val / wnid / name).exists()
            raise UserError(
                f"{val}: {name} is {'both in' if both else 'neither in'} images/ "
                f"{'and' if both else 'nor'} {wnid}/; unpack {URL} again"
            )
    for name, wnid in labels.items():
        if (val / "images" / name).exists():
            (val / wnid).mkdir(exist_ok=True)
            os.rename(val / "images" / name, val / wnid / name)
    if (images := val / "images").is_dir():
        if left := sorted(os.listdir(images)):
            raise UserError(
                f"{images} still holds {left[0]}, which val_annotations.txt does not list"
            )
        images.rmdir()
    return root


def _annotations(file, wnids, per_class):
    """val_annotations.txt -> dict of file name -> wnid."""
    labels = {}
    for number, line in enumerate(files.lines(file), 1):
        name, wnid, *_ = (*map(str.strip, line.split("\t")), "")
        # a name with a separator would be moved to where it does not belong
        if name != Path(name).name or name in ("", ".."):
            raise UserError(f"{file}, line {number}: {name!r} is no file name")
        if wnid not in wnids:
            raise UserError(f"{file}, line {number}: class {wnid!r} has no folder in train/")
        if name in labels:
            raise UserError(f"{file}, line {number}: {name} is listed twice")
        labels[name] = wnid
    counts = Counter(labels.values())
    for wnid in sorted(wnids):
        _expect(f"{file}: number of images of class {wnid}", counts[wnid], per_class)
    return labels


def _count(folder):
    return sum(is_image_name(name) for _, _, names in os.walk(folder) for name in names)


def _expect(what, found, right):
    if found != right:
        raise UserError(f"{what} is {found}; it should be {right}")
