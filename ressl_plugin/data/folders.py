"""Folders of image files, with and without labels."""

import os
from pathlib import Path

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from ressl_plugin.data.identity import sizes
from ressl_plugin.data.images import EXTENSIONS, fit, is_image_name, load_image
from ressl_plugin.errors import UserError


class _Fitted:
    """Loading that both kinds share: decode by our rules, fit to image_size, transform."""

    image_size = None
    interpolation = "bicubic"

    def __getitem__(self, index):
        path, target = self.samples[index]
        image = load_image(path)
        if self.image_size:
            image = fit(image, self.image_size, self.interpolation)
        return image if self.transform is None else self.transform(image), target

    def key_files(self):
        return [Path(path) for path, _ in self.samples]

    def parts(self):
        paths = [path for path, _ in self.samples]
        return zip((os.path.relpath(path, self.root) for path in paths), sizes(paths))

    def keep(self, indexes):
        self.samples = [self.samples[i] for i in indexes]
        self.targets = [target for _, target in self.samples]


class FolderImages(_Fitted, ImageFolder):
    """torchvision's ImageFolder (a folder a class, nested folders allowed) with our decoder.

    `.ignored`: how many files have an extension that is not read. Raises UserError, naming `key`,
    for a folder without class folders and for an empty class folder.
    """

    def __init__(self, root, key="data.train_path"):
        root = Path(root)
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        if not classes:
            raise UserError(
                f"{key}={root} has no class folders; lay the images out as one folder a class"
                + (", or set data.no_labels=true" if "train" in key else "")
            )
        if set(classes) <= {"train", "val", "test"}:
            raise UserError(f"{key}={root} holds {', '.join(classes)}; give {root / classes[0]}")
        try:
            super().__init__(str(root), loader=load_image)
        except FileNotFoundError as error:
            empty = [name for name in classes if not _image_files(root / name)[0]]
            shown = ", ".join(str(root / name) for name in empty[:3])
            raise UserError(
                f"{len(empty)} empty class folder{'s' * (len(empty) > 1)}: {shown}; put images in "
                f"({' '.join(EXTENSIONS)}) or remove the folder"
            ) from error
        self._ignored = None

    @property
    def ignored(self):
        if self._ignored is None:  # a second walk, so only when somebody asks
            self._ignored = _image_files(self.root)[1] + _loose_images(self.root)
        return self._ignored


class FlatFolder(_Fitted, Dataset):
    """All images under a folder, at any depth, without labels: targets are -1, sorted by path."""

    def __init__(self, root, key="data.train_path"):
        self.root, self.transform, self.classes = str(root), None, []
        files, self.ignored = _image_files(root)
        if not files:
            raise UserError(
                f"{key}={root} holds no image ({self.ignored} other files); "
                f"these extensions are read: {' '.join(EXTENSIONS)}"
            )
        self.samples = [(file, -1) for file in sorted(files)]
        self.targets = [-1] * len(self.samples)

    def __len__(self):
        return len(self.samples)


def _image_files(root):
    """-> (image paths as str, count of other files)."""
    files, ignored = [], 0
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            if is_image_name(name):
                files.append(os.path.join(folder, name))
            else:
                ignored += 1
    return files, ignored


def _loose_images(root):
    return sum(is_image_name(entry.name) for entry in os.scandir(root) if entry.is_file())
