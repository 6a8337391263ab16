"""scikit-learn's handwritten digits, 1,797 real 8x8 images, as an image folder."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ressl_plugin.utils.errors import UserError

COUNTS = {"train": 1437, "val": 360}


def make_digits(root):
    """Write root/{train,val}/{0..9}/*.png and return root as a Path.

    The files are 8x8, 8-bit grey (mode L, 16 -> 255); a recipe's crops scale them up. The split is
    stratified and seeded: 1,437 train, 360 val. A folder with as many is left alone, and is there
    as a whole or not at all. Raises UserError if root holds anything else, of which nothing is
    deleted, and if nothing can be written there.
    """
    root = Path(root)
    if is_complete(root):  # it may well be read-only
        return root
    try:
        if root.is_dir() and any(root.iterdir()):
            raise UserError(
                f"{root} holds other files, or not all of the digits; give an empty or new folder"
            )
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.") as folder:
            whole = Path(folder) / "digits"
            _build(whole)
            whole.rename(root)  # of several processes one is the first
    except OSError as error:
        if not is_complete(root):
            raise UserError(
                f"{root}: the digits cannot be written there ({error.strerror or error}); "
                "give a folder in a place that can be written"
            ) from error
    return root


def is_complete(root):
    """True when root holds as many images as `make_digits` makes."""
    found = {split: len(list(Path(root, split).glob("[0-9]/*.png"))) for split in COUNTS}
    return found == COUNTS


def _build(root):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    indexes = np.arange(len(levels))
    train, val = train_test_split(
        indexes, test_size=COUNTS["val"], stratify=digits.target, random_state=0
    )
    for split, members in (("train", train), ("val", val)):
        for label in range(10):
            (root / split / str(label)).mkdir(parents=True)
        for i in members:
            file = root / split / str(digits.target[i]) / f"{i:04d}.png"
            Image.fromarray(levels[i]).save(file)
