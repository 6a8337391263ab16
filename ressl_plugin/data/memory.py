"""Small images, decoded once a run, as one uint8 array."""

import math

import numpy as np
import torch

from ressl_plugin.data.images import size_of
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.progress import progress_bar
from ressl_plugin.utils.threads import in_threads


class MemoryImages:
    """All images of a build_dataset: `images` uint8 (N, H, W, 3), `labels` int64 (N,) with -1 for
    none, both CPU tensors.

    Arrays (CIFAR, .npz) that need no resizing are taken as they are, everything else is decoded.
    The data set's image_size (data.image_size) is applied; without it all images must have one
    size. Raises UserError for images of several sizes, for a bad image (named) and for more than
    memory holds.
    """

    def __init__(self, dataset, progress=True):
        self.labels = torch.tensor(dataset.targets, dtype=torch.int64)
        array, size = getattr(dataset, "data", None), dataset.image_size
        if array is None or (size and array.shape[1:3] != (size, size)):
            array = _decoded(dataset, progress)
        self.images = torch.from_numpy(np.ascontiguousarray(array))

    def to(self, device):
        """-> (images, labels) on the device."""
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


def common_size(dataset, most):
    """(width, height) of all images, of files from their headers; None if those differ, or if one
    has a side of more than `most` pixels."""
    if dataset.image_size:
        return dataset.image_size, dataset.image_size
    if hasattr(dataset, "data"):
        return dataset.data.shape[2:0:-1]
    found = set()
    paths = [path for path, _ in dataset.samples]
    for size in in_threads(lambda path: size_of(path, dataset.exif), paths):
        if size is not None:  # a bad file is the check's business
            found.add(size)
        if len(found) > 1 or (size and max(size) > most):
            return None
    return found.pop() if found else None


def _decoded(dataset, progress):
    shape = np.asarray(dataset.image(0)).shape
    try:
        array = np.empty((len(dataset), *shape), np.uint8)
    except MemoryError as error:
        raise UserError(f"{error}; data.backend=host holds no images in memory") from error

    def fill(index):
        image = np.asarray(dataset.image(index))
        if image.shape != shape:
            raise UserError(
                f"{dataset.samples[index][0]} is {image.shape[1]}x{image.shape[0]} pixels, "
                f"{dataset.samples[0][0]} is {shape[1]}x{shape[0]}; images in memory have one "
                "size: data.image_size=… makes them so, data.backend=host draws views of any size"
            )
        array[index] = image

    how = {"desc": "decoding", "unit": "images", "total": len(array), "disable": not progress}
    for _ in progress_bar(in_threads(fill, range(len(array))), **how):
        pass
    return array
