"""`ressl data cifar10 OUT.npz --from SOURCE`: CIFAR as one file, both splits in it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity, extract_archive

from ressl_plugin.data.catalogue import DATASETS
from ressl_plugin.data.sources import FolderImages
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.files import replacing

log = logging.getLogger(__name__)

PACKED = ("cifar10", "cifar100")
FOLDERS = {"train": ("train",), "test": ("test", "val")}

Split = tuple[np.ndarray, np.ndarray]  # images (N, 32, 32, 3) uint8, labels (N,) int64


def pack(name: str, source: str | Path, out: str | Path, hold_out: int = 0) -> Path:
    """Write `out` with x_train, y_train, x_test, y_test and classes.

    The images stand in the order of their digests, whatever `source` is: so each makes the same
    file, and a seed the same training.

    Args:
        name: of PACKED.
        source: the archive as it is downloaded, torchvision's folder, or a folder with train/ and
            test/ (or val/), each with a folder of images a class.
        out: a name that ends in .npz.
        hold_out: so many of the training images, as many of each class, in the place of the test
            images: to choose settings on.

    Raises:
        UserError: a source that is none of these or holds other images, a bad `hold_out`.

    Example:
        >>> pack("cifar10", "cifar-10-python.tar.gz", "cifar10.npz")  # doctest: +SKIP
    """
    out, row = Path(out), DATASETS[name]
    if out.suffix != ".npz" or out.is_dir():
        raise UserError(f"{out}: the file to write, a name that ends in .npz")
    out.parent.mkdir(parents=True, exist_ok=True)
    splits, classes = _read(name, Path(source), unpack_in=out.parent)
    for split, count, known in zip(FOLDERS, row.images, row.digests):
        found, (images, _) = f"{source}: {name}'s {split} split", splits[split]
        if len(images) != count or len(classes) != row.classes:
            raise UserError(
                f"{found} has {len(images)} images of {len(classes)} classes; it should be {count} "
                f"of {row.classes}"
            )
        splits[split], digest = in_order(*splits[split])
        if known and digest != known:
            raise UserError(f"{found} holds other images or labels than it should")
    if hold_out:
        splits["train"], splits["test"] = held_out(*splits["train"], hold_out)
    arrays = {f"{key}_{s}": array for s, pair in splits.items() for key, array in zip("xy", pair)}
    with replacing(out) as file:
        np.savez(file, **arrays, classes=np.array(classes))
    return out


def in_order(images: np.ndarray, labels: np.ndarray) -> tuple[Split, str]:
    """The split in the order of its images' digests, and the digest of them all."""
    digests = [
        hashlib.blake2b(int(label).to_bytes(2, "little") + image.tobytes(), digest_size=16).digest()
        for image, label in zip(images, labels)
    ]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    whole = hashlib.sha256(b"".join(digests[i] for i in order)).hexdigest()[:32]
    return (images[order], labels[order]), whole


def held_out(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[Split, Split]:
    """The last `count` images, as many of each class, apart: (the others, those).

    Raises:
        UserError: they are no multiple of the classes, or nothing is left of one.
    """
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    each, rest = divmod(count, len(members))
    if rest or not 0 < each < min(map(len, members)):
        raise UserError(
            f"--hold-out {count}: a multiple of {len(members)} classes, fewer than there are images"
        )
    apart = np.zeros(len(labels), dtype=bool)
    apart[np.concatenate([of_class[-each:] for of_class in members])] = True
    return (images[~apart], labels[~apart]), (images[apart], labels[apart])


def _read(name: str, source: Path, unpack_in: Path) -> tuple[dict[str, Split], list[str]]:
    """Both splits and the classes' names, in the order of the labels."""
    reader = getattr(datasets, DATASETS[name].torchvision)
    if source.is_file():
        if not check_integrity(str(source), reader.tgz_md5):
            raise UserError(f"{source}: is not {reader.filename} as {reader.url} has it")
        with tempfile.TemporaryDirectory(dir=unpack_in, prefix=f".{name}.") as folder:
            extract_archive(str(source), folder)
            return _read(name, Path(folder), unpack_in)
    if (source / reader.base_folder).is_dir():
        try:
            both = {s: reader(source, train=s == "train") for s in FOLDERS}
        except RuntimeError as error:  # torchvision's, of a checksum
            raise UserError(
                f"{source / reader.base_folder}: incomplete or damaged; unpack "
                f"{reader.filename} again"
            ) from error
        splits = {s: (part.data, np.array(part.targets)) for s, part in both.items()}
        return splits, both["train"].classes
    return _read_folders(name, source)


def _read_folders(name: str, source: Path) -> tuple[dict[str, Split], list[str]]:
    splits, classes = {}, []
    for split, names in FOLDERS.items():
        folder = next((source / n for n in names if (source / n).is_dir()), None)
        if folder is None:
            raise UserError(
                f"--from {source}: no {' or '.join(names)}/ there; give {name}'s archive, "
                "torchvision's folder of it, or one with train/ and test/"
            )
        found = FolderImages(folder, "--from")
        images = [np.asarray(found.image(i)) for i in range(len(found))]
        side = DATASETS[name].size
        if odd := [i for i, image in enumerate(images) if image.shape != (side, side, 3)]:
            raise UserError(f"{found.samples[odd[0]][0]}: {name}'s images are {side} x {side}")
        splits[split] = (np.stack(images), np.array(found.targets))
        if classes and found.classes != classes:
            raise UserError(f"--from {source}: {folder.name}/ has other classes than train/")
        classes = found.classes
    if not DATASETS[name].digests[0]:
        log.warning("%s: of %s only the counts are known", source, name)
    return splits, classes
