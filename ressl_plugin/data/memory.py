"""Small images, decoded once, as one uint8 array in a memory-mapped file."""

import hashlib
import json
import math
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from ressl_plugin.data import known
from ressl_plugin.data.images import fit, load_image, size_of
from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.progress import progress_bar

VERSION = 2  # 2: with a checksum of the pixels
_CHUNK = 512


class MemoryImages:
    """All images of a build_dataset: `images` uint8 (N, H, W, 3), `labels` int64 (N,)
    with -1 for none, both CPU tensors, and `classes`.

    Arrays (CIFAR, .npz) that need no resizing are taken as they are. Everything else is decoded
    once into cache_dir and memory-mapped from there; the cache is made anew when a file's name,
    size or time, the image size or the decoder changes, is written atomically, and only one
    process writes it while the others wait. The data set's image_size (data.image_size) is applied;
    without it all images must have one size. Raises UserError for images of several sizes, for a
    bad image (named) and for a full disk.
    """

    def __init__(self, dataset, cache_dir, progress=True):
        self.classes = list(dataset.classes)
        self.labels = torch.tensor(dataset.targets, dtype=torch.int64)
        data = getattr(dataset, "data", None)
        if data is not None and dataset.image_size in (None, *_square(data.shape)):
            array = np.ascontiguousarray(data)
        else:
            array = _cached(dataset, Path(cache_dir), progress)
        self.images = torch.from_numpy(array)

    def __len__(self):
        return len(self.labels)

    @property
    def nbytes(self):
        return self.images.nbytes

    def to(self, device):
        """-> (images, labels) on the device; on the CPU the images stay memory-mapped."""
        return self.images.to(device), self.labels.to(device)


class CleanBatches:
    """Batches (images (B, 3, H, W) normalised, targets (B,)) of `images` uint8 (N, H, W, 3), in
    order, on the device that holds them: no worker processes and no copies."""

    def __init__(self, images, targets, batch_size, mean, std):
        self.images, self.targets, self.batch_size = images, targets, batch_size
        self.mean, self.std = mean, std

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self):
        mean, std = (torch.tensor(v, device=self.images.device) for v in (self.mean, self.std))
        parts = (t.split(self.batch_size) for t in (self.images, self.targets))
        for images, targets in zip(*parts):
            yield images.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2), targets


def memory_bytes(dataset):
    """Bytes that MemoryImages(dataset) will take; without image_size, if all images are of the
    first one's size (`common_size`)."""
    if dataset.image_size:
        return len(dataset) * dataset.image_size**2 * 3
    if getattr(dataset, "data", None) is not None:
        return int(np.prod(dataset.data.shape))
    width, height = size_of(dataset.samples[0][0]) or (0, 0)
    return len(dataset) * width * height * 3


def common_size(dataset, digest, most):
    """(width, height) of all images of a folder, from their headers; None if they differ, or if the
    first that can be read has a side of more than `most` pixels.

    digest: of the data set (identity.identify): under it the answer is kept for all runs.
    """
    name = "size, turned" if dataset.exif else "size"
    kept = known.facts(digest).get(name)
    if isinstance(kept, list) and len(kept) in (0, 2) and all(type(n) is int for n in kept):
        return tuple(kept) or None
    found = set()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(dataset), _CHUNK):
            files = [path for path, _ in dataset.samples[start : start + _CHUNK]]
            found.update(pool.map(lambda file: size_of(file, dataset.exif), files))
            found.discard(None)  # a bad file is the check's business
            if any(max(size) > most for size in found):
                return None
            if len(found) > 1:
                break
    known.remember(digest, **{name: list(*found) if len(found) == 1 else []})
    return next(iter(found)) if len(found) == 1 else None


def _square(shape):
    return (shape[1],) if shape[1] == shape[2] else ()


def _cached(dataset, folder, progress):
    key = _key(dataset)
    # One file a source and size: a changed folder overwrites its cache instead of adding one.
    root = Path(getattr(dataset, "root", dataset.key_files()[0])).resolve()
    where = f"{root} {_split(dataset)} {dataset.image_size}"
    stem = folder / f"images-{hashlib.sha256(os.fsencode(where)).hexdigest()[:12]}"
    array, sidecar = stem.with_suffix(".npy"), stem.with_suffix(".json")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _valid(array, sidecar, key):
            with files.locked(stem.with_suffix(".lock")):  # one rank decodes, the others wait here
                if not _valid(array, sidecar, key):
                    sidecar.unlink(missing_ok=True)  # it must never describe another array
                    _write(dataset, array, progress)
                    files.replace(sidecar, json.dumps({**key, "crc32": _checksum(array)}).encode())
        return np.load(array, mmap_mode="c")  # torch wants writable; nothing reaches the file
    except OSError as error:
        raise UserError(f"the image cache {array} cannot be written ({error})") from error


def _split(dataset):
    """Folders are told apart by their path; one CIFAR or STL-10 folder holds every split."""
    return None if hasattr(dataset, "root") else getattr(dataset, "split", None)


def _key(dataset):
    digest, root = hashlib.sha256(), getattr(dataset, "root", None)
    digest.update(np.asarray(dataset.targets, dtype=np.int64).tobytes())
    for file in dataset.key_files():
        try:
            stat = file.stat()
        except OSError as error:
            raise UserError(f"{file} is gone or cannot be read ({error.strerror})") from error
        name = os.path.relpath(file, root) if root else str(file)
        # as the file system has it: a name need not be UTF-8
        digest.update(os.fsencode(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
    return {
        "version": VERSION,
        "pillow": PIL.__version__,
        "images": len(dataset),
        "split": _split(dataset),
        "image_size": dataset.image_size,
        "interpolation": dataset.interpolation,
        "exif": dataset.exif,
        "files": digest.hexdigest(),
    }


def _valid(array, sidecar, key):
    try:
        kept = json.loads(sidecar.read_text())
        return {**key, "crc32": _checksum(array)} == kept
    except (OSError, ValueError, RecursionError):  # absent or damaged
        return False


def _checksum(array):
    """CRC-32 of the whole file, header and pixels: some seconds for MEMORY_LIMIT."""
    checksum = 0
    with open(array, "rb") as file:
        while chunk := file.read(1 << 24):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _write(dataset, path, progress):
    """Decode in threads, write in order. Plain writes, not a memory map: on a full disk these
    raise OSError, where a map would kill the process."""
    shape = None
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a killed process: it may be large
        leftover.unlink()
    how = {"desc": "decoding", "unit": "images", "disable": not progress}
    with (
        files.replacing(path) as file,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress_bar(total=len(dataset), **how) as bar,
    ):
        for start in range(0, len(dataset), _CHUNK):
            indexes = range(start, min(start + _CHUNK, len(dataset)))
            for i, image in zip(indexes, pool.map(lambda i: _pixels(dataset, i), indexes)):
                if shape is None:
                    shape = image.shape
                    header = {"descr": "|u1", "fortran_order": False}
                    header["shape"] = (len(dataset), *shape)
                    np.lib.format.write_array_header_1_0(file, header)
                elif image.shape != shape:
                    raise UserError(_several_sizes(dataset, i, image.shape, shape))
                file.write(image.tobytes())
            bar.update(len(indexes))


def _pixels(dataset, index):
    if getattr(dataset, "data", None) is not None:
        image = Image.fromarray(np.ascontiguousarray(dataset.data[index]))
    else:
        image = load_image(dataset.samples[index][0], dataset.exif)
    if dataset.image_size:
        image = fit(image, dataset.image_size, dataset.interpolation)
    return np.asarray(image)


def _several_sizes(dataset, index, found, first):
    return (
        f"{dataset.samples[index][0]} is {found[1]}x{found[0]} pixels, {dataset.samples[0][0]} is "
        f"{first[1]}x{first[0]}; images in memory have one size: data.image_size=… makes them so, "
        "data.backend=host draws views of any size"
    )
