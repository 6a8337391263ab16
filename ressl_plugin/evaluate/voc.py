"""PASCAL VOC2007 classification images, read from a VOCdevkit as it is unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ressl_plugin import data
from ressl_plugin.data.identity import sizes
from ressl_plugin.evaluate.features import extract
from ressl_plugin.evaluate.sampling import IGNORE
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError

NAME = "voc07"  # in records
# in the lists 1 is present, -1 absent, 0 only objects that are marked difficult
LABELS = {"1": 1, "-1": 0, "0": IGNORE}


class VOC(Dataset):
    """Images of one split and their labels: 1 present, 0 absent, -1 only difficult ones.

    Args:
        root: VOCdevkit, the folder it is in, or its VOC2007.
        split: trainval, train, val or test, of the lists ImageSets/Main/<class>_<split>.txt.
        transform: of the PIL images.

    Attributes:
        names: image names; targets: (N, classes) int8; classes: class names, sorted.

    Raises:
        UserError: no such folder, split or image; lists that differ.
    """

    def __init__(self, root: str | Path, split: str, transform=None):
        places = [Path(root, folder) for folder in ("VOCdevkit/VOC2007", "VOC2007", ".")]
        there = [place for place in places if (place / "ImageSets" / "Main").is_dir()]
        if not there:
            raise UserError(f"{root}: no VOC2007/ImageSets/Main; give the unpacked VOCdevkit")
        self.root, self.transform = there[0], transform
        lists = sorted((self.root / "ImageSets" / "Main").glob(f"*_{split}.txt"))
        if not lists:
            raise UserError(f"{self.root}/ImageSets/Main: no list of a class, <class>_{split}.txt")
        self.classes = [path.stem.removesuffix(f"_{split}") for path in lists]
        self.names, self.targets = _read(lists)
        missing = [name for name in self.names if not self._file(name).is_file()]
        if missing:
            raise UserError(
                f"{self.root / 'JPEGImages'}: {missing[0]}.jpg is missing ({len(missing)} in all)"
            )

    def parts(self) -> list[tuple[str, int]]:
        """(name, bytes) of each image, see data/identity.py."""
        return list(zip(self.names, sizes(self._file(name) for name in self.names)))

    def _file(self, name: str) -> Path:
        return self.root / "JPEGImages" / f"{name}.jpg"

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int):
        path = self._file(self.names[index])
        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise UserError(f"{path} is not a readable image: {error}") from None
        return self.transform(image) if self.transform else image, self.targets[index]


def _read(lists: list[Path]) -> tuple[list[str], np.ndarray]:
    """Image names and (N, classes) labels of the lists of a split, one a class."""
    names, columns = None, []
    for path in lists:
        rows = [line.split() for line in files.lines(path)]
        bad = next((row for row in rows if len(row) != 2 or row[1] not in LABELS), None)
        if bad is not None:
            raise UserError(f"{path}: line '{' '.join(bad)}'; each is a name and 1, 0 or -1")
        listed = [name for name, _ in rows]
        if names not in (None, listed):
            raise UserError(f"{path} lists other images than {lists[0]}; unpack the devkit again")
        names = listed
        columns.append([LABELS[code] for _, code in rows])
    return names, np.array(columns, dtype=np.int8).T


def extracted(backbone, root, cfg, device="cpu") -> tuple[list, dict]:
    """Features and labels of trainval, then of test, and what both splits are (for a record).

    Images are shown as by the run's evaluation transform; `root` is as in `VOC`.
    """
    transform = data.evaluation_transform(cfg)
    splits = [VOC(root, split, transform) for split in ("trainval", "test")]
    if splits[0].classes != splits[1].classes:
        raise UserError(f"{root}: trainval and test have other classes; unpack the devkit again")
    loaders = [DataLoader(images, 64, num_workers=cfg.data.num_workers) for images in splits]
    cached = [part for loader in loaders for part in extract(backbone, loader, device)]
    return cached, dict(zip(("train", "val"), map(data.identify, splits)))
