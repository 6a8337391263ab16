"""The files below a folder, each real directory visited once."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ressl_plugin.data.images import is_image_name, printable


@dataclass
class Listing:
    """What `walk` found; paths begin with the root as it was given."""

    images: dict = field(default_factory=dict)  # root -> its images' paths, in torchvision's order
    others: list = field(default_factory=list)  # files without an image's extension
    unreadable: list = field(default_factory=list)  # folders that cannot be listed
    links: list = field(default_factory=list)  # links to folders that are visited elsewhere

    def refused(self, error: OSError) -> None:
        """For os.walk(onerror=...)."""
        self.unreadable.append(os.fspath(error.filename))

    def ignored(self) -> Counter:
        """Lower-case extension ("" for none) -> how many files have it and are not read."""
        return Counter(Path(file).suffix.lower() for file in self.others)


def by_extension(ignored: Counter) -> str:
    """Of Listing.ignored: "12 .avif, 3 .txt, 1 without", the most frequent first."""
    return ", ".join(f"{n} {printable(kind) or 'without'}" for kind, n in ignored.most_common())


def class_folders(root, found: Listing) -> list[str]:
    """The names of the folders directly in `root`, sorted; what lies beside them is added to
    `found`."""
    _, folders, names = next(os.walk(root, onerror=found.refused), (root, [], []))
    found.others += [os.path.join(root, name) for name in names]
    return sorted(folders)


def walk(roots, above=(), found: Listing | None = None) -> Listing:
    """List every file below each of `roots` (folders, such as those of classes), into `found`.

    A link to a folder is followed, unless what it leads to is one of the roots, one of the folders
    `above` them, or visited already: a loop of links ends, and no image comes twice. A real
    directory counts where it lies, before links to it. Two roots that are one folder: the second
    is a link to it.
    """
    found, seen = found or Listing(), {_who(folder) for folder in above}
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
    links = []
    for where, folders, names in os.walk(folder, onerror=found.refused):
        seen.add(_who(where))
        paths = [os.path.join(where, name) for name in folders]
        links += [(root, path) for path in paths if os.path.islink(path)]
        files += [(where, name) for name in names if is_image_name(name)]
        found.others += [os.path.join(where, name) for name in names if not is_image_name(name)]
    return links


def _who(folder):
    """What a directory is, by whatever name; the name itself where it cannot be asked."""
    try:
        status = os.stat(folder)
    except OSError:
        return os.fspath(folder)
    return status.st_dev, status.st_ino
