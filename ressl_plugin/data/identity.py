"""What a data set is, wherever it lies: how many images and classes, and a digest of its files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from ressl_plugin.utils import files
from ressl_plugin.utils.errors import UserError
from ressl_plugin.utils.threads import in_threads

FILE = "data.json"  # in a run directory
KEYS = ("images", "classes", "digest")


def identify(dataset) -> dict:
    """`{images: int, classes: int, digest: str}` of a data set from data.build_dataset.

    The digest is over names (below the data set's root) and sizes of its files, in order, over the
    content of up to 64 of them, and over the targets: the same for a copy elsewhere, another one if
    a file is added, taken away, renamed, moved to another class or of another size. Of a .npz it is
    over the checksums of its arrays. Paths, times of files and image_size have no part in it.

    Raises:
        UserError: a file is gone.
    """
    digest = hashlib.sha256(np.asarray(dataset.targets, dtype=np.int64).tobytes())
    for name, size in dataset.parts():
        digest.update(os.fsencode(f"{name}\0{size}\n"))  # a name need not be UTF-8
    return {
        "images": len(dataset),
        "classes": len(dataset.classes),
        "digest": digest.hexdigest()[:32],
    }


def sizes(paths) -> list[int]:
    """Bytes of each file, in order; asked for in threads, because shared disks answer late.

    Raises:
        UserError: a file is gone, or cannot be asked for.
    """
    with _readable():
        return list(in_threads(os.path.getsize, list(paths), workers=8))


def checksum(file) -> int:
    """CRC-32 of a file's content.

    Raises:
        UserError: it cannot be read.
    """
    with _readable():
        return zlib.crc32(Path(file).read_bytes())


@contextlib.contextmanager
def _readable():
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename} is gone or cannot be read ({error.strerror})") from error


def differences(saved: dict, now: dict) -> str | None:
    """What of two identities differs, as half a sentence; None for the same data."""
    changed = [f"{key} {saved[key]} -> {now[key]}" for key in KEYS[:2] if saved[key] != now[key]]
    if not changed and saved["digest"] != now["digest"]:
        changed = ["as many images and classes, but other names, sizes, labels or content"]
    return ", ".join(changed) or None


def keep(run_dir: str | Path, found: dict) -> None:
    """Write RUN/data.json, from which tables learn what a run was trained on."""
    files.replace(Path(run_dir) / FILE, json.dumps({"train": found}).encode())


def of_run(run_dir: str | Path) -> dict | None:
    """The identity of the data that a run was trained on; None where it is not written down.

    Raises:
        UserError: the file that is there is broken.
    """
    path = Path(run_dir) / FILE
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it") from None
    found = content.get("train") if isinstance(content, dict) else None
    if not is_identity(found):
        raise UserError(f"{path}: holds no identity of a data set ({', '.join(KEYS)}); delete it")
    return found


def is_identity(value) -> bool:
    """Whether a value, read from a file, is what `identify` gives."""
    return (
        isinstance(value, dict)
        and set(value) == set(KEYS)
        and type(value["images"]) is int
        and type(value["classes"]) is int
        and isinstance(value["digest"], str)
    )
