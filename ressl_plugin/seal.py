"""A checksum inside a torch checkpoint, and what a file would import if it were unpickled.

The SHA-256 stands in the comment field that every zip archive has at its very end, so that data
and checksum appear under the final name in one rename; a checksum in a second file could be torn
from its data by a crash between two renames. ``torch.load``, the host's scripts and ``unzip``
read such a file as any other.
"""

import contextlib
import hashlib
import io
import os
import pickletools
import re
import struct
import zipfile

import torch

from ressl_plugin.errors import UserError

_LABEL = b"ressl-sha256:"
_SEAL = len(_LABEL) + 64  # the comment: label and hexadecimal digest
_TAIL = 22 + _SEAL  # zip's end record is 22 bytes, the last two give the comment's length
_CHUNK = 1 << 20


class CheckpointError(UserError):
    """A checkpoint could not be written, or cannot be read; says which and what is still good."""


class Damaged(CheckpointError):
    """Absent, truncated or altered: the one before it may serve."""


class SealingFile(io.RawIOBase):
    """Passes bytes on while hashing them; holds the last two back for the comment's length."""

    def __init__(self, file):
        self.file, self.sha, self.held, self.error = file, hashlib.sha256(), b"", None

    def writable(self):
        return True

    def write(self, data):
        view = memoryview(data).cast("B")
        try:
            if len(view) >= 2:
                self._put(self.held)
                self._put(view[:-2])
                self.held = bytes(view[-2:])
            else:
                joined = self.held + bytes(view)
                self._put(joined[:-2])
                self.held = joined[-2:]
        except BaseException as error:  # a signal's, too; torch may replace it by one of its own
            self.error = error
            raise
        return len(view)

    def _put(self, data):
        self.file.write(data)
        self.sha.update(data)

    def seal(self):
        """Write the archive's last two bytes, the length of its comment, and the comment."""
        if self.held != b"\0\0":
            raise Damaged("torch.save did not end in a zip record without a comment")
        self.file.write(struct.pack("<H", _SEAL) + _LABEL + self.sha.hexdigest().encode())


def verify(path) -> bool:
    """Raise Damaged unless the bytes are those once written.

    Returns whether anything could be checked: a seal, or a zip's own CRCs in files of others.
    """
    try:
        with open(path, "rb") as file:
            if hasattr(os, "posix_fadvise"):  # ask the disk, not the cache it was written through
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            tail = file.read()
            if tail[22:].startswith(_LABEL):
                _compare(path, file, size, tail)
                return True
            file.seek(0)
            if size == 0:
                raise Damaged(f"{path} is empty")
            if file.read(4) != b"PK\x03\x04":
                return False
            return _compare_crcs(path, file)
    except FileNotFoundError:
        raise Damaged(f"{path} is absent") from None
    except OSError as error:
        raise Damaged(f"{path} cannot be read ({error.strerror or error})") from error


def _compare(path, file, size, tail):
    sha, left = hashlib.sha256(), size - _SEAL - 2
    file.seek(0)
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        sha.update(chunk)
        left -= len(chunk)
    length = struct.unpack("<H", tail[20:22])[0]
    if length != _SEAL or sha.hexdigest().encode() != tail[22 + len(_LABEL) :]:
        raise Damaged(f"{path} is damaged (its checksum does not match)")


def _compare_crcs(path, file) -> bool:
    """Check a zip without our seal: complete to the last byte, and its members' own CRCs."""
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 22 - 0xFFFF))
        end = file.read().rpartition(b"PK\x05\x06")[2]
        if len(end) < 18 or len(end) - 18 != struct.unpack("<H", end[16:18])[0]:
            raise Damaged(f"{path} is truncated")
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (OSError, Damaged):
        raise
    except Exception as error:  # zipfile raises many kinds on damaged archives
        raise Damaged(f"{path} is damaged ({error})") from None
    if bad:
        raise Damaged(f"{path} is damaged (CRC of {bad})")
    return True


def imports(path, error) -> list[str]:
    """Names that a pickle would import, found without running it.

    ``error`` is what ``torch.load(weights_only=True)`` raised; its text names the first.
    """
    with contextlib.suppress(Exception):
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return names
    names, words = set(re.findall(r"GLOBAL ([\w.]+)", str(error))), []
    with open(path, "rb") as file, contextlib.suppress(Exception):
        for op, argument, _ in pickletools.genops(file):
            if op.name in ("GLOBAL", "INST"):
                names.add(argument.replace(" ", "."))
            elif op.name == "STACK_GLOBAL":
                names.add(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    return sorted(names)
