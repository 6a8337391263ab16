"""The files below a folder, each real directory visited once."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ressl_plugin.data.images import is_image_name


@dataclass
class Listing:
    """What `walk` found; paths begin with the root as it was given."""

    images: dict = field(default_factory=dict)  # root -> its images' paths, in torchvision's order
    others: list = field(default_factory=list)  # files without an image's extension
    unreadable: list = field(default_factory=list)  # folders that cannot be listed
    links: list = field(default_factory=list)  # links to folders that are visited elsewhere

    def ignored(self) -> Counter:
        """Lower-case extension ("" for none) -> how many files have it and are not read."""
        return Counter(Path(file).suffix.lower() for file in self.others)


def walk(roots, above=()) -> Listing:
    """List every file below each of `roots` (folders, such as those of classes).

    A link to a folder is followed, unless what it leads to is one of the roots, one of the folders
    `above` them, or visited already: a loop of links ends, and no image comes twice. A real
    directory counts where it lies, before links to it. Two roots that are one folder: the second
    is a link to it.
    """
    found, seen = Listing(), {_who(folder) for folder in above}
    entries = {root: [] for root in map(os.fspath, roots)}
    pending = []
    for root in entries:
        if (who := _who(root)) in seen:
            found.links.append(root)
        else:
            seen.add(who)
            pending.append((root, root))
    while pending:
        links = []
        for root, folder in pending:
            links += _tree(root, folder, seen, entries[root], found)
        pending = []
        for root, folder in sorted(links):
            if (who := _who(folder)) in seen:
                found.links.append(folder)
            else:
                seen.add(who)
                pending.append((root, folder))
    for root, files in entries.items():
        found.images[root] = [os.path.join(*file) for file in sorted(files)]
    found.others.sort()
    return found


def _tree(root, folder, seen, files, found):
    """The real directories from `folder` down; -> the links to folders in them."""
    links, stack = [], [folder]
    while stack:
        folder = stack.pop()
        try:
            with os.scandir(folder) as entries:
                inside = list(entries)
        except OSError:
            found.unreadable.append(folder)
            continue
        for entry in inside:
            if is_dir(entry):
                if entry.is_symlink():
                    links.append((root, entry.path))
                else:
                    seen.add(_who(entry.path))
                    stack.append(entry.path)
            elif is_image_name(entry.name):
                files.append((folder, entry.name))
            else:
                found.others.append(entry.path)
    return links


def is_dir(entry) -> bool:
    """Whether an entry of os.scandir is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _who(folder):
    """What a directory is, by whatever name; the name itself where it cannot be asked."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.fspath(folder)
    return status.st_dev, status.st_ino
