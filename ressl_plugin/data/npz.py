"""A `.npz` of uint8 images, read without pickle."""

import lzma
import tokenize
import zipfile
import zlib

import numpy as np

from ressl_plugin.utils.errors import UserError

IMAGES, LABELS = ("x", "images"), ("y", "labels")
SPLITS = ("train", "test")  # of a file that holds both: x_train, y_train, x_test, y_test
# What reading a damaged file raises; RuntimeError where a flag of the archive itself is hit.
READING = (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
           lzma.LZMAError)  # fmt: skip
# And a header of an array: it may promise more than memory holds, or than there is.
HEADER = (*READING, MemoryError, OverflowError, SyntaxError, TypeError, tokenize.TokenError)
FEWEST_CLASSES = 2**16  # labels may always count as far, however few the images are


def read_npz(path, split="train"):
    """File -> (images uint8 (N, H, W, 3), labels int64 (N,), classes list of str).

    Keys: `x` or `images`, uint8 of shape (N, H, W, 3), (N, H, W, 1) or (N, H, W); optionally `y` or
    `labels`, integers (N,), -1 for none; optionally `classes`, N strings. Without labels all are
    -1. A file that holds both splits, as Keras writes them, has `x_train`, `y_train`, `x_test`,
    `y_test` in their place, and `split` tells which are read. Raises UserError naming the file and
    the key. Nothing is unpickled, and a header that promises more than the file holds fills no
    memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            of_images, of_labels = _names(archive, split)
            images = _images(path, archive, of_images)
            labels = _labels(path, archive, len(images), of_labels)
            classes = _classes(path, archive, labels)
    except READING as error:
        raise UserError(
            f"{path} is no readable .npz ({error}); np.savez(FILE, x=images) writes one"
        ) from error
    return images, labels, classes


def checksums(path, split="train"):
    """Key -> CRC-32 of a .npz that read_npz has read, as sorted pairs: of the arrays, not of how
    they are compressed, and without those of the other split."""
    (other,) = {*SPLITS} - {split}
    with zipfile.ZipFile(path) as archive:
        entries = [e for e in archive.infolist() if not e.filename.endswith(f"_{other}.npy")]
        return sorted((entry.filename, entry.CRC) for entry in entries)


def has_splits(path):
    """Whether a .npz that read_npz has read holds training and test images apart."""
    with zipfile.ZipFile(path) as archive:
        return _has_splits(archive)


def _has_splits(archive):
    return any(f"x_{name}" in _keys(archive) for name in SPLITS)


def _names(archive, split):
    """The keys that images and labels may be under."""
    if _has_splits(archive):
        return (f"x_{split}",), (f"y_{split}",)
    return IMAGES, LABELS


def _keys(archive):
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _array(path, archive, name):
    try:
        with archive.open(f"{name}.npy") as file:
            # in parts: memory that the file does not fill is asked for and never touched
            return np.lib.format.read_array(file, allow_pickle=False)
    except HEADER as error:
        raise UserError(
            f"{path}, key {name}: cannot be read ({error}); it is damaged, too large for memory, "
            "or no plain array, and nothing is unpickled"
        ) from error


def _only(path, archive, names):
    found = [name for name in names if name in _keys(archive)]
    if len(found) > 1:
        raise UserError(f"{path} has both {found[0]} and {found[1]}; keep one")
    return found[0] if found else None


def _images(path, archive, names):
    name = _only(path, archive, names)
    if name is None:
        raise UserError(
            f"{path} has the keys {', '.join(_keys(archive)) or 'none'}; images are "
            f"under {' or '.join(names)}"
        )
    images = _array(path, archive, name)
    if images.dtype != np.uint8:
        raise UserError(f"{path}, key {name}: dtype {images.dtype}; images are uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}, key {name}: shape {images.shape}; images are (N, H, W, 3) or (N, H, W)"
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _labels(path, archive, count, names):
    name = _only(path, archive, names)
    if name is None:
        return np.full(count, -1, dtype=np.int64)
    labels = _array(path, archive, name)
    if labels.ndim == 2 and labels.shape[1] == 1:  # MedMNIST keeps (N, 1)
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}, key {name}: dtype {labels.dtype}; labels are integers")
    if labels.shape != (count,):
        raise UserError(f"{path}, key {name}: shape {labels.shape}; labels are ({count},)")
    if labels.min() < -1:
        raise UserError(f"{path}, key {name}: value {labels.min()}; labels are >= 0, or -1: none")
    most = max(count, FEWEST_CLASSES)
    if labels.max() >= most:
        raise UserError(
            f"{path}, key {name}: value {labels.max()}; classes are numbered from 0, so labels of "
            f"{count} images are below {most}"
        )
    return labels.astype(np.int64)


def _classes(path, archive, labels):
    count = int(labels.max()) + 1
    if "classes" not in _keys(archive):
        return [str(label) for label in range(count)]
    names = _array(path, archive, "classes")
    if names.dtype.kind != "U" or not names.dtype.itemsize:
        raise UserError(f"{path}, key classes: dtype {names.dtype}; names are strings")
    if names.ndim != 1 or len(names) < count:
        raise UserError(
            f"{path}, key classes: shape {names.shape}; {count} names are needed, one a label"
        )
    letters = np.ascontiguousarray(names).view(f"{names.dtype.byteorder}u4")
    if ((letters > 0x10FFFF) | ((letters >= 0xD800) & (letters < 0xE000))).any():
        raise UserError(f"{path}, key classes: holds what is no text; the file is damaged")
    return names.tolist()
