"""The files below a folder, each real directory visited once."""

from __future__ import annotations

import os
from collections import Counter, deque
from pathlib import Path

from ressl_plugin.data.images import is_image_name
from ressl_plugin.utils.errors import UserError


def by_extension(files) -> str:
    """ "12 .avif, 3 .txt, 1 without", the most frequent first."""
    counts = Counter(Path(file).suffix.lower() for file in files)
    return ", ".join(f"{n} {kind or 'without'}" for kind, n in counts.most_common())


def listed(root) -> tuple[list[str], list[str]]:
    """The folders directly in `root`, sorted, and the files beside them.

    Raises:
        UserError: it cannot be.
    """
    _, folders, names = next(os.walk(root, onerror=_refuse))
    inside = [os.path.join(root, name) for name in sorted(folders)]
    return inside, [os.path.join(root, name) for name in names]


def walk(tops, above=()) -> tuple[dict[str, list[str]], list[str]]:
    """Every file below each of `tops` (folders, such as those of classes): top -> the paths of its
    images, in torchvision's order; the other files.

    A link to a folder is followed, unless what it leads to is one of the tops, one of the folders
    `above` them, or visited already: a loop of links ends, and no image comes twice. A real
    directory counts where it lies, before links to it.

    Raises:
        UserError: a folder cannot be listed.
    """
    found = {os.fspath(top): [] for top in tops}
    others, seen = [], {_who(folder) for folder in above}
    # the tops themselves, the real ones first, then links, level by level
    waiting = deque((top, top) for top in sorted(found, key=os.path.islink))
    while waiting:
        top, start = waiting.popleft()
        if _who(start) in seen:
            continue
        for where, folders, names in os.walk(start, onerror=_refuse):
            seen.add(_who(where))
            folders.sort()
            paths = [os.path.join(where, name) for name in folders]
            waiting += [(top, path) for path in paths if os.path.islink(path)]
            found[top] += [(where, name) for name in names if is_image_name(name)]
            others += [os.path.join(where, name) for name in names if not is_image_name(name)]
    images = {top: [os.path.join(*file) for file in sorted(found[top])] for top in found}
    return images, sorted(others)


def _who(folder):
    """What a directory is, by whatever name."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _refuse(error: OSError):
    """For os.walk(onerror=...)."""
    raise UserError(f"the folder {error.filename} cannot be listed ({error.strerror})")
