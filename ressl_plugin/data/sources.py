"""The images of a data set: one array, or the files of a folder, with and without labels."""

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.functional import to_pil_image

from ressl_plugin.config.schema import MAX_PIXELS
from ressl_plugin.data.identity import checksum, sizes
from ressl_plugin.data.images import EXTENSIONS, BadImage, fit, is_image_name, load_image, to_rgb
from ressl_plugin.data.statistics import interpolation
from ressl_plugin.data.walk import by_extension, listed, walk
from ressl_plugin.utils.errors import UserError

READ = 64  # files of a folder whose content is a part of its identity


class Images(Dataset):
    """Gives (transform(PIL RGB), target), each image fitted to `.image_size` first, where that is
    given, by `.interpolation`. `.targets` are ints, -1 for none."""

    transform, image_size, interpolation, exif = None, None, "bicubic", False
    max_pixels = MAX_PIXELS

    def __len__(self):
        return len(self.targets)

    def show_as(self, cfg, transform):
        """Fit, turn and transform images as a config says."""
        self.transform, self.image_size = transform, cfg.data.get("image_size")
        self.interpolation, self.exif = interpolation(cfg).value, bool(cfg.data.get("exif"))
        self.max_pixels = cfg.data.get("max_pixels") or MAX_PIXELS

    def __getitem__(self, index):
        image = self.image(index)
        return image if self.transform is None else self.transform(image), self.targets[index]

    def image(self, index):
        """PIL RGB, fitted and not transformed."""
        image = self._decoded(index)
        return fit(image, self.image_size, self.interpolation) if self.image_size else image


class ArrayImages(Images):
    """`.data`: uint8 (N, H, W, 3). parts: (name, size or checksum) of what it was read from."""

    def __init__(self, data, targets, classes, parts):
        self.data, self.targets = data, [int(target) for target in targets]
        self.classes, self._parts = list(classes), list(parts)

    def _decoded(self, index):
        return Image.fromarray(np.ascontiguousarray(self.data[index]))

    def parts(self):
        return self._parts

    def keep(self, indexes):
        which = hashlib.sha256(np.asarray(indexes, dtype=np.int64).tobytes()).hexdigest()
        self._parts = [*self._parts, (which, len(indexes))]
        self.data, self.targets = self.data[indexes], [self.targets[i] for i in indexes]


class GivenImages(Images):
    """Images at hand, without labels: PIL images, uint8 arrays (H, W, 3), uint8 tensors (3, H, W)
    or file names, as they come."""

    def __init__(self, given):
        if isinstance(given, (str, Path)):  # its letters are no images
            raise UserError(f"images: a sequence of images is expected, as [{str(given)!r}]")
        self.given, self.targets = given, [-1] * len(given)

    def _decoded(self, index):
        given = self.given[index]
        if isinstance(given, (str, Path)):
            return load_image(given, self.exif, self.max_pixels)
        plain = isinstance(given, Image.Image)
        kind = getattr(given, "dtype", type(given).__name__)
        if not plain and kind not in (np.uint8, torch.uint8):
            raise UserError(f"images[{index}]: uint8 expected, got {kind}")
        try:
            return to_rgb(given if plain else to_pil_image(given))
        except (BadImage, ValueError) as error:  # ValueError: of its shape
            raise UserError(f"images[{index}]: {error}") from None


class _Folder(Images):
    """`.samples`: (path, target) pairs. `.ignored`: how many files are not read, by extension."""

    def __init__(self, root, classes, samples, others):
        self.root, self.classes, self.samples = str(root), classes, samples
        self.targets, self.ignored = [target for _, target in samples], by_extension(others)

    def _decoded(self, index):
        return load_image(self.samples[index][0], self.exif, self.max_pixels)

    def parts(self):
        """Names and sizes, and the content of a few: of two copies made larger, blurred or the
        like under the same names, no size need differ where a format does not compress."""
        paths = [path for path, _ in self.samples]
        names = [os.path.relpath(path, self.root) for path in paths]
        some = range(0, len(paths), -(-len(paths) // READ))
        contents = [(names[i], checksum(paths[i])) for i in some]
        return [*zip(names, sizes(paths)), *contents]

    def keep(self, indexes):
        self.samples = [self.samples[i] for i in indexes]
        self.targets = [target for _, target in self.samples]


class FolderImages(_Folder):
    """A folder a class, nested folders allowed, in the order of torchvision's ImageFolder.

    Raises UserError, naming `key`, for a folder without class folders and for an empty class
    folder.
    """

    def __init__(self, root, key="data.train_path"):
        folders, beside = listed(root)
        classes = [os.path.basename(folder) for folder in folders]
        if not classes:
            loose = sum(map(is_image_name, beside))
            needed = key in ("data.val_path", "--from")  # their labels
            raise UserError(
                f"{key}={root} has {loose} images and no class folders; lay them out as one folder "
                "a class" + ", or set data.no_labels=true (--no-labels)" * (not needed)
            )
        if set(classes) <= {"train", "val", "test"}:
            wanted = ("val", "test") if key == "data.val_path" else ("train",)
            right = next((name for name in wanted if name in classes), classes[0])
            raise UserError(
                f"{key}={root} holds {', '.join(classes)}; give {os.path.join(root, right)}"
            )
        images, others = walk(folders, above=[root])
        if empty := [folder for folder in folders if not images[folder]]:
            ignored = f" ({by_extension(others)} are ignored)" if others else ""
            raise UserError(
                f"{key}={root}: without an image{ignored}, or another name of a folder that has "
                f"been read: {', '.join(empty[:3])}; a class folder needs images of its own "
                f"({' '.join(EXTENSIONS)})"
            )
        samples = [(file, i) for i, folder in enumerate(folders) for file in images[folder]]
        super().__init__(root, classes, samples, beside + others)


class FlatFolder(_Folder):
    """All images under a folder, at any depth, without labels: targets are -1, sorted by path.

    Raises UserError, naming `key`, for a folder without images.
    """

    def __init__(self, root, key="data.train_path"):
        images, others = walk([root])
        samples = [(file, -1) for file in sorted(images[str(root)])]
        super().__init__(root, [], samples, others)
        if not samples:
            ignored = f" ({self.ignored} are ignored)" if others else ""
            raise UserError(
                f"{key}={root} holds no image{ignored}; these extensions are read: "
                f"{' '.join(EXTENSIONS)}"
            )
