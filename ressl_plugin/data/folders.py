"""Folders of image files, with and without labels."""

import os
from pathlib import Path

from torch.utils.data import Dataset

from ressl_plugin.data.identity import sizes
from ressl_plugin.data.images import EXTENSIONS, fit, load_image
from ressl_plugin.data.walk import is_dir, walk
from ressl_plugin.utils.errors import UserError


class _Folder(Dataset):
    """Loading that both kinds share: decode by our rules, fit to image_size, transform.

    `.ignored`: extension -> how many files are not read, because it is no image's.
    """

    image_size, transform, exif, interpolation = None, None, False, "bicubic"

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, target = self.samples[index]
        image = load_image(path, self.exif)
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


class FolderImages(_Folder):
    """A folder a class, nested folders allowed, in the order of torchvision's ImageFolder.

    Raises UserError, naming `key`, for a folder without class folders, for an empty class folder
    and for a folder that cannot be listed.
    """

    def __init__(self, root, key="data.train_path"):
        self.root = str(root)
        with os.scandir(root) as entries:
            inside = list(entries)
        self.classes = sorted(entry.name for entry in inside if is_dir(entry))
        if not self.classes:
            raise UserError(
                f"{key}={root} has no class folders; lay the images out as one folder a class"
                + (", or set data.no_labels=true" if "train" in key else "")
            )
        if set(self.classes) <= {"train", "val", "test"}:
            raise UserError(
                f"{key}={root} holds {', '.join(self.classes)}; give {Path(root, self.classes[0])}"
            )
        folders = [os.path.join(root, name) for name in self.classes]
        found = walk(folders, above=[root])
        _refuse_unreadable(found, key)
        _refuse_same(found, folders, key)
        if empty := [folder for folder in folders if not found.images[folder]]:
            raise UserError(
                f"{len(empty)} empty class folder{'s' * (len(empty) > 1)}: {', '.join(empty[:3])}; "
                f"put images in ({' '.join(EXTENSIONS)}) or remove the folder"
            )
        found.others += [entry.path for entry in inside if not is_dir(entry)]  # in no class
        self.ignored = found.ignored()
        self.samples = [
            (file, target) for target, folder in enumerate(folders) for file in found.images[folder]
        ]
        self.targets = [target for _, target in self.samples]


class FlatFolder(_Folder):
    """All images under a folder, at any depth, without labels: targets are -1, sorted by path."""

    def __init__(self, root, key="data.train_path"):
        self.root, self.classes = str(root), []
        found = walk([root])
        _refuse_unreadable(found, key)
        self.ignored = found.ignored()
        files = found.images[self.root]
        if not files:
            raise UserError(
                f"{key}={root} holds no image ({self.ignored.total()} other files); "
                f"these extensions are read: {' '.join(EXTENSIONS)}"
            )
        self.samples = [(file, -1) for file in sorted(files)]
        self.targets = [-1] * len(self.samples)


def _refuse_unreadable(found, key):
    if found.unreadable:
        more = f" and {len(found.unreadable) - 1} more" * (len(found.unreadable) > 1)
        raise UserError(
            f"{key}: no permission to list the folder {found.unreadable[0]}{more}; "
            "give yourself the right to read it, or remove it"
        )


def _refuse_same(found, folders, key):
    for folder in set(found.links).intersection(folders):
        twin = next(other for other in folders if os.path.samefile(other, folder))
        raise UserError(f"{key}: {folder} and {twin} are one and the same folder; remove one")
