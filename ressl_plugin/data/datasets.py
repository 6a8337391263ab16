"""Every data set by its name in the config, each as a torch Dataset of (image, target).

All have `.targets` (list of int, -1 for none), `.classes` (names), `.parts()` ((name, size) pairs,
the content wherever it lies: see identity.py), and either `.data` (uint8, N x H x W x 3) or
`.samples` ((path, target) pairs).
"""

import os
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np

from ressl_plugin.data.catalogue import DATASETS, row_of
from ressl_plugin.data.identity import sizes
from ressl_plugin.data.npz import checksums, has_splits, read_npz
from ressl_plugin.data.packing import PACKED
from ressl_plugin.data.sources import ArrayImages, FlatFolder, FolderImages
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.files import locked


def build_dataset(cfg, split, transform=None, need_labels=False):
    """Config in main's schema, a split -> Dataset of (transform(PIL RGB), target).

    split: "pretrain" (all training images, STL-10's unlabelled ones too, `data.fraction` of them),
    "train" (the labelled training images) or "val" (CIFAR's and STL-10's test set).
    `data.image_size` resizes every image first. need_labels: unlabelled data is an error. Raises
    UserError naming the config key, the path and what would be right.
    """
    data = cfg.data
    row = row_of(cfg)
    key, path = _path(data, split)
    if data.get("format") == "h5":
        raise UserError("data.format=h5 is for the host's scripts; here, use image_folder or npz")
    if data.dataset == "npz" or data.get("format") == "npz" or path.suffix == ".npz":
        dataset = _npz(data, split, key, path)
    elif row.torchvision:
        dataset = _torchvision(data, split, key, path)
    else:
        dataset = _folder(data, split, key, path)
    dataset.show_as(cfg, transform)
    unlabelled = sum(target < 0 for target in dataset.targets)
    if need_labels and unlabelled:
        raise UserError(
            f"{key}={path}: {unlabelled} of {len(dataset)} images have no label, and labels are "
            "needed here; give labelled data (data.no_labels=false, or the key y of a .npz)"
        )
    if split == "pretrain":
        keep_fraction(dataset, data.get("fraction") or -1)
    return dataset


def _path(data, split):
    """-> (config key, Path), the validation data where train data is for sets that hold both."""
    key = "data.val_path" if split == "val" else "data.train_path"
    value, has_test_set = data.get(key.removeprefix("data.")), DATASETS[data.dataset].torchvision
    if value is None and split == "val" and has_test_set:
        key = "data.train_path"
        value = data.get("train_path")
    if value is None:
        raise UserError(f"{key} is not set; it is the path of the {data.dataset} data")
    path = Path(str(value)).expanduser()
    fetched = data.get("download") and has_test_set and path.suffix != ".npz"
    if not path.exists() and not fetched:
        hint = _how_to_get(data.dataset, path)
        raise UserError(f"{key}={path}: no such file or directory; {hint}")
    return key, path


def _how_to_get(name, path):
    if path.suffix == ".npz":
        packs = f"`ressl data {name} FILE --from ARCHIVE`"
        return f"{packs if name in PACKED else 'np.savez(FILE, x=…)'} writes one"
    # the recipes call digits and Tiny ImageNet custom, as the host's scripts know no other name
    if name == "custom":
        folders = [one for one, row in DATASETS.items() if not row.torchvision]
        fits = [one for one in folders if any(part.startswith(one) for part in path.parts)]
        name = max(fits, key=len, default=name)
    return DATASETS[name].hint


def _torchvision(data, split, key, path):
    from torchvision import datasets

    name, download = data.dataset, bool(data.get("download"))
    reader = getattr(datasets, DATASETS[name].torchvision)
    folder = reader.base_folder
    try:
        with _fetching_alone(path) if download else nullcontext():
            if name == "stl10":
                which = {"pretrain": "train+unlabeled", "train": "train", "val": "test"}[split]
                source = reader(path, split=which, download=download)
                images, targets = source.data.transpose(0, 2, 3, 1), source.labels
            else:
                source = reader(path, train=split != "val", download=download)
                images, targets = source.data, source.targets
    except (RuntimeError, OSError) as error:
        if download:
            raise UserError(f"{key}={path}: {name} could not be fetched ({error})") from error
        state = "is incomplete or damaged" if (path / folder).exists() else "is not there"
        hint = _how_to_get(name, path)
        raise UserError(f"{key}={path}: {path / folder} {state}; {hint}") from error
    names = [name for name, _ in (*source.train_list, *source.test_list)]
    parts = zip(names, sizes([path / folder / name for name in names]))
    return ArrayImages(images, targets, source.classes, parts)


@contextmanager
def _fetching_alone(folder):
    """Of several processes that torchrun has started, one writes the archive, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".download.lock"
    to_write = lock if lock.exists() else folder
    if not os.access(to_write, os.W_OK):  # somebody else's, complete already
        yield
        return
    with locked(lock):
        yield


def _npz(data, split, key, path):
    part = "test" if split == "val" else "train"
    images, labels, classes = read_npz(path, part)
    train_path = Path(str(data.get("train_path") or "")).expanduser()
    if split == "val" and train_path.is_file():
        if not has_splits(path):
            _other_images(data, key, path, " or a file with x_train and x_test as data.path")
        known = read_npz(train_path)[2]
        if len(classes) > len(known) > 0:
            raise UserError(f"{key}={path} has label {len(classes) - 1}, the training set has none")
        if _named(classes) and _named(known) and classes != known[: len(classes)]:
            raise UserError(
                f"{key}={path} has the classes {', '.join(classes)[:80]}; the training set has "
                f"{', '.join(known)[:80]}: a label must mean the same in both"
            )
        classes = known or classes
    return ArrayImages(images, labels, classes, checksums(path, part))


def _folder(data, split, key, path):
    if not path.is_dir():
        raise UserError(f"{key}={path} is a file; {data.dataset} is a folder of class folders")
    if split == "val":
        _other_images(data, key, path)
    if data.get("no_labels") and not (split == "val" and _has_folders(path)):
        return FlatFolder(path, key)
    dataset = FolderImages(path, key)
    limit = DATASETS[data.dataset].classes
    if limit and len(dataset.classes) > limit:
        raise UserError(
            f"{key}={path} has {len(dataset.classes)} class folders; {data.dataset} has {limit} "
            "(data.dataset=custom takes any number)"
        )
    if split == "val" and data.get("train_path") and not data.get("no_labels"):
        _same_classes(dataset, key, path, Path(str(data.train_path)).expanduser())
    return dataset


def _has_folders(path):
    with os.scandir(path) as entries:
        return any(entry.is_dir() for entry in entries)


def _other_images(data, key, path, otherwise=""):
    """Refuse to validate on the training images."""
    train_path = data.get("train_path")
    if train_path and Path(str(train_path)).expanduser().resolve() == path.resolve():
        name = "data.dataset=npz " if DATASETS[data.dataset].torchvision else ""
        raise UserError(
            f"{key}={path}: these are the training images, and accuracies on them mean nothing; "
            f"give others as data.val_path{otherwise}; {name}data.train_path={path} "
            "data.val_path=null trains without"
        )


def _named(classes):
    """Whether they are names, not the numbers that stand for missing ones."""
    return classes != [str(label) for label in range(len(classes))]


def _same_classes(dataset, key, path, train_path):
    if not train_path.is_dir():
        return  # evaluation of a finished run may go where its training data is not
    train = {entry.name for entry in train_path.iterdir() if entry.is_dir()}
    missing, extra = train - set(dataset.classes), set(dataset.classes) - train
    if missing or extra:
        words = [
            f"it {what} {', '.join(sorted(names)[:3])}"
            for what, names in (("lacks", missing), ("has besides", extra))
            if names
        ]
        raise UserError(
            f"{key}={path}: {', '.join(words)}; it needs the {len(train)} class folders of "
            f"data.train_path={train_path}"
        )


def keep_fraction(dataset, fraction):
    """`data.fraction` of a data set's images, in place; -1: all. The host's choice: the same draw,
    so that both keep the same images. Raises UserError for fewer than an image a class."""
    if fraction in (-1, 1):
        return
    from sklearn.model_selection import train_test_split

    targets = np.asarray(dataset.targets)
    labelled = bool((targets >= 0).any())
    try:
        kept, _ = train_test_split(
            np.arange(len(dataset)),
            train_size=float(fraction),
            random_state=42,
            stratify=targets if labelled else None,
        )
    except ValueError as error:
        raise UserError(f"data.fraction={fraction} of {len(dataset)} images: {error}") from error
    dataset.keep(kept)
