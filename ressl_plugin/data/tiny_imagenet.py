"""Tiny ImageNet as it is downloaded -> an image folder."""

import os
from pathlib import Path

from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.data.images import is_image_name
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

AGAIN = "unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip again, and give its folder"


def arrange(root):
    """Move val/images/* to val/<wnid>/ as val_annotations.txt says, once all images are there.

    train/<wnid>/images/*.JPEG stays: image folders may be nested. Every move is one rename, and
    nothing is deleted, so it may be interrupted and run again. Returns the folder that holds
    train/ and val/ (root, or root/tiny-imagenet-200). Raises UserError naming the folder or file.
    """
    root = Path(root)
    if (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    train, val = root / "train", root / "val"
    for folder, right in zip((train, val), DATASETS["tiny-imagenet"].images):
        walk = os.walk(folder)
        found = sum(is_image_name(name) for _, _, names in walk for name in names)
        if found != right:
            raise UserError(f"{folder} has {found} images, not {right}; {AGAIN}")
    labels = _annotations(val / "val_annotations.txt", os.listdir(train))
    if len(labels) != right:
        raise UserError(f"val_annotations.txt lists {len(labels)} images, not {right}; {AGAIN}")
    for name, wnid in labels.items():  # look before anything is moved
        if (val / "images" / name).exists() == (val / wnid / name).exists():
            both = (val / wnid / name).exists()
            raise UserError(
                f"{val}: {name} is {'both in' if both else 'neither in'} images/ "
                f"{'and' if both else 'nor'} {wnid}/; {AGAIN}"
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


def _annotations(file, wnids):
    """val_annotations.txt -> dict of file name -> wnid."""
    labels = {}
    for number, line in enumerate(files.lines(file), 1):
        name, wnid, *_ = (*map(str.strip, line.split("\t")), "")
        # a name with a separator would be moved to where it does not belong
        if name != Path(name).name or name in ("", ".."):
            raise UserError(f"{file}, line {number}: {name!r} is no file name")
        if wnid not in wnids:
            raise UserError(f"{file}, line {number}: class {wnid!r} has no folder in train/")
        labels[name] = wnid
    return labels
