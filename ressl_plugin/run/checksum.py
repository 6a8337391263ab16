"""Whether a checkpoint's bytes are those once written.

A checkpoint is a zip archive, which holds a CRC of each of its members. ``torch.load`` does not
look at them.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zipfile
from pathlib import Path

from ressl_plugin.utils.errors import Damaged

# zipfile's, on a damaged archive; any other exception is not of the file (a signal's, perhaps)
_OF_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, IndexError,
              OverflowError, struct.error)  # fmt: skip
_LOCKED = 0x1  # with a password
_DIRECTORY = 0x10  # an entry of which torch takes nothing: the tensor stays as it was allocated


def read_checked(path) -> tuple[io.BytesIO, bool]:
    """A file in memory, checked as by `verify`, and whether there was anything to compare."""
    with _as_damage(path):
        file = io.BytesIO(Path(path).read_bytes())
        is_archive = _check(file, path)
    file.seek(0)
    return file, is_archive


def verify(path) -> bool:
    """Compare all members of the archive with their CRCs, as the disk has them now.

    Returns whether there is anything to compare: only a zip has checksums.

    Raises:
        Damaged: absent, truncated, or other bytes than were once written.
    """
    with _as_damage(path), open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return _check(file, path)


def _check(file, path) -> bool:
    if not (magic := file.read(4)):
        raise Damaged(f"{path} is empty")
    if magic != b"PK\x03\x04":  # of torch's older format, a pickle, or nothing of ours
        if zipfile.is_zipfile(file):
            raise Damaged(f"{path} is damaged (its first bytes)")
        return False
    archive = zipfile.ZipFile(file)
    for info in archive.infolist():
        stored = info.compress_type == zipfile.ZIP_STORED
        plain = stored and info.file_size == info.compress_size and not info.flag_bits & _LOCKED
        if not plain or info.external_attr & _DIRECTORY:
            raise Damaged(f"{path} is damaged (the entry of {info.filename})")
    if name := archive.testzip():
        raise Damaged(f"{path} is damaged (the checksum of {name})")
    return True


@contextlib.contextmanager
def _as_damage(path):
    try:
        yield
    except FileNotFoundError:
        raise Damaged(f"{path} is absent") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror or error})") from error
    except _OF_DAMAGE as error:
        raise Damaged(f"{path} is damaged ({str(error) or type(error).__name__})") from None
