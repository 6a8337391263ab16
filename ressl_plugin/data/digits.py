"""scikit-learn's handwritten digits, 1,797 real 8x8 images, as an image folder."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.files import locked

VERSION = 1
TRAIN, VAL = 1437, 360


def make_digits(root):
    """Write root/{train,val}/{0..9}/*.png and return root as a Path.

    The files are 8x8, 8-bit grey (mode L, 16 -> 255); a recipe's crops scale them up. The split is
    stratified and seeded: 1,437 train, 360 val. A finished folder (its manifest's counts and
    checksum hold) is left alone, a damaged one is replaced as a whole; of several processes one
    makes it and the others wait. Raises UserError if root holds anything else, which is never
    deleted, and if nothing can be written there.
    """
    root = Path(root)
    if is_complete(root):  # it may well be read-only
        return root
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(root.parent / f".{root.name}.lock"):
            if not is_complete(root):
                _refuse_foreign(root)
                _build(root)
    except OSError as error:
        raise UserError(
            f"{root}: the digits cannot be written there ({error.strerror or error}); "
            "give a folder in a place that can be written"
        ) from error
    return root


def is_complete(root):
    """True when root holds every image of `make_digits`, unchanged."""
    root = Path(root)
    try:
        return json.loads((root / "manifest.json").read_text()) == _manifest(root)
    except (OSError, ValueError):  # or somebody is replacing it just now
        return False


def _manifest(root):
    digest, counts = hashlib.sha256(), {}
    for split in ("train", "val"):
        files = sorted((root / split).glob("*/*.png"))
        counts[split] = len(files)
        for file in files:
            digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return {"version": VERSION, "counts": counts, "sha256": digest.hexdigest()}


def _build(root):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    levels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    indexes = np.arange(len(levels))
    train, val = train_test_split(indexes, test_size=VAL, stratify=digits.target, random_state=0)
    # Built beside its final place and renamed: nobody ever sees half of it.
    partial, old = (root.parent / f".{root.name}.{what}" for what in ("partial", "old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    for split, members in (("train", train), ("val", val)):
        for label in range(10):
            (partial / split / str(label)).mkdir(parents=True)
        for i in members:
            Image.fromarray(levels[i]).save(
                partial / split / str(digits.target[i]) / f"{i:04d}.png"
            )
    (partial / "manifest.json").write_text(json.dumps(_manifest(partial)))
    if root.exists():
        root.rename(old)
    partial.rename(root)
    shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(root):
    if root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; the digits need a folder")
    ours = re.compile(r"manifest\.json|(train|val)(/\d(/\d{4}\.png)?)?")
    for path in sorted(root.rglob("*")):
        if not ours.fullmatch(path.relative_to(root).as_posix()):
            raise UserError(f"{root} holds other files ({path.name}); give an empty or new folder")
