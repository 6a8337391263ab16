"""A `.npz` of uint8 images, read without pickle."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from ressl_plugin.errors import UserError

IMAGES, LABELS = ("x", "images"), ("y", "labels")
# What reading a damaged file raises; RuntimeError where a flag of the archive itself is hit.
READING = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


def read_npz(path, key="data.train_path"):
    """File -> (images uint8 (N, H, W, 3), labels int64 (N,), classes list of str).

    Keys: `x` or `images`, uint8 of shape (N, H, W, 3), (N, H, W, 1) or (N, H, W); optionally `y` or
    `labels`, integers (N,), -1 for none; optionally `classes`, N strings. Without labels all are
    -1. Raises UserError naming the file and the key. `key`: the config key to name.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; give a .npz with the images under the key x")
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise UserError(f"{path} is a single array; save it with np.savez(FILE, x=images)")
        with file:
            images = _images(path, file)
            labels = _labels(path, file, len(images))
            classes = _classes(path, file, labels)
    except READING as error:
        raise UserError(f"{path} is no readable .npz ({error})") from error
    return images, labels, classes


def checksums(path):
    """Key -> CRC-32 of a .npz that read_npz has read, as sorted pairs: of the arrays, not of how
    they are compressed."""
    with zipfile.ZipFile(path) as archive:
        return sorted((entry.filename, entry.CRC) for entry in archive.infolist())


def _array(path, file, name):
    try:
        return file[name]
    except ValueError as error:  # an object array needs pickle, which runs code from the file
        raise UserError(
            f"{path}, key {name}: {error}; save plain arrays, nothing is unpickled"
        ) from error


def _only(path, file, names):
    found = [name for name in names if name in file.files]
    if len(found) > 1:
        raise UserError(f"{path} has both {found[0]} and {found[1]}; keep one")
    return found[0] if found else None


def _images(path, file):
    name = _only(path, file, IMAGES)
    if name is None:
        raise UserError(
            f"{path} has the keys {', '.join(file.files) or 'none'}; images are under x or images"
        )
    images = _array(path, file, name)
    if images.dtype != np.uint8:
        raise UserError(f"{path}, key {name}: dtype {images.dtype}; images are uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}, key {name}: shape {images.shape}; images are (N, H, W, 3) or (N, H, W)"
        )
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def _labels(path, file, count):
    name = _only(path, file, LABELS)
    if name is None:
        return np.full(count, -1, dtype=np.int64)
    labels = _array(path, file, name)
    if labels.ndim == 2 and labels.shape[1] == 1:  # MedMNIST keeps (N, 1)
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}, key {name}: dtype {labels.dtype}; labels are integers")
    if labels.shape != (count,):
        raise UserError(f"{path}, key {name}: shape {labels.shape}; labels are ({count},)")
    if labels.min() < -1:
        raise UserError(f"{path}, key {name}: value {labels.min()}; labels are >= 0, or -1: none")
    return labels.astype(np.int64)


def _classes(path, file, labels):
    count = int(labels.max()) + 1
    if "classes" not in file.files:
        return [str(label) for label in range(count)]
    names = _array(path, file, "classes")
    if names.ndim != 1 or len(names) < count:
        raise UserError(
            f"{path}, key classes: shape {names.shape}; {count} names are needed, one a label"
        )
    return [str(name) for name in names]
