"""PASCAL VOC classification images, read from a VOCdevkit as it is unpacked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ressl_plugin import data
from ressl_plugin.data.identity import sizes
from ressl_plugin.evaluate.average_precision import IGNORE
from ressl_plugin.evaluate.features import extract
from ressl_plugin.utils.errors import UserError

NAME = "voc07"  # in records
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class VOC(Dataset):
    """Images of one split and their labels: 1 present, 0 absent, -1 only difficult ones.

    Labels come from ImageSets/Main/<class>_<split>.txt; without these files from Annotations.

    Args:
        root: VOCdevkit, or its VOC2007.
        split: trainval, train, val or test.
        transform: PIL image -> tensor; the paper's is shorter side 256, centre crop 224.
        year: folder VOC<year>.

    Attributes:
        names: image names; targets: (N, classes) int8; classes: class names.

    Raises:
        UserError: no such folder, split or image; lists that differ.
    """

    def __init__(self, root: str | Path, split: str, transform=None, year: int = 2007):
        root = Path(root)
        if (root / "VOCdevkit").is_dir():
            root = root / "VOCdevkit"
        self.root = root / f"VOC{year}" if (root / f"VOC{year}").is_dir() else root
        self.transform = transform
        sets = self.root / "ImageSets" / "Main"
        if not sets.is_dir() or not (self.root / "JPEGImages").is_dir():
            raise UserError(
                f"{root}: no VOC{year}/ImageSets/Main and VOC{year}/JPEGImages; "
                "give the unpacked VOCdevkit"
            )
        lists = {path.stem.removesuffix(f"_{split}"): path for path in sets.glob(f"*_{split}.txt")}
        if lists:
            self.classes = [c for c in CLASSES if c in lists] or sorted(lists)
            self.names, self.targets = _from_lists([lists[c] for c in self.classes])
        else:
            self.names = _names(sets / f"{split}.txt")
            self.classes, self.targets = _from_annotations(self.root / "Annotations", self.names)
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


def _names(path: Path) -> list[str]:
    if not path.is_file():
        raise UserError(f"no {path}; the splits are the lists in {path.parent}")
    return [line.split()[0] for line in path.read_text().splitlines() if line.split()]


def _from_lists(paths: list[Path]):
    # in the lists 1 is present, -1 absent, 0 only objects that are marked difficult
    code = {"1": 1, "-1": 0, "0": IGNORE}
    names, columns = None, []
    for path in paths:
        rows = [line.split() for line in path.read_text().splitlines() if line.split()]
        bad = next((row for row in rows if len(row) != 2 or row[1] not in code), None)
        if bad is not None:
            raise UserError(f"{path}: line '{' '.join(bad)}'; each is a name and 1, 0 or -1")
        listed = [row[0] for row in rows]
        if names not in (None, listed):
            raise UserError(f"{path} lists other images than {paths[0]}; unpack the devkit again")
        names = listed
        columns.append([code[row[1]] for row in rows])
    return names, np.array(columns, dtype=np.int8).T


def _from_annotations(folder: Path, names: list[str]):
    import xml.etree.ElementTree as ElementTree

    found = []
    for name in names:
        path = folder / f"{name}.xml"
        try:
            objects = ElementTree.parse(path).getroot().iter("object")
        except (OSError, ElementTree.ParseError) as error:
            raise UserError(f"{path}: no readable annotation ({error})") from None
        present: dict[str, int] = {}
        for thing in objects:
            easy = (thing.findtext("difficult") or "0").strip() != "1"
            label = thing.findtext("name").strip()
            present[label] = max(present.get(label, IGNORE), 1 if easy else IGNORE)
        found.append(present)
    seen = {label for present in found for label in present}
    classes = [c for c in CLASSES if c in seen] + sorted(seen - set(CLASSES))
    targets = [[present.get(c, 0) for c in classes] for present in found]
    return classes, np.array(targets, dtype=np.int8).reshape(len(names), len(classes))


def extracted(backbone, root, cfg, device="cpu") -> tuple[list, dict]:
    """Features and labels of trainval, then of test, and what both splits are (for a record).

    Args:
        backbone: images (N, 3, S, S) -> (N, d), S the run's evaluation size.
        root: the VOCdevkit as it is unpacked.
        cfg: the run's config; its evaluation transform is used (shorter side 256, crop 224).

    Raises:
        UserError: the devkit is incomplete.
    """
    transform = data.evaluation_transform(cfg, any_size=True)
    splits = [VOC(root, split, transform) for split in ("trainval", "test")]
    only = sorted(set(splits[0].classes) ^ set(splits[1].classes))
    if only:
        raise UserError(
            f"{root}: trainval and test have other classes, only one of them has "
            f"{', '.join(only)}; unpack the devkit again"
        )
    cached = []
    for images in splits:
        loader = DataLoader(images, 64, num_workers=cfg.data.num_workers)
        cached += extract(backbone, loader, device)
    return cached, dict(zip(("train", "val"), map(data.identify, splits)))
