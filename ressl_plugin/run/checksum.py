"""The checksums of a torch checkpoint, and what a file would import if it were unpickled.

A checkpoint is a zip archive, which holds a CRC of each of its members. ``torch.load`` does not
look at them; here they are computed of the bytes that it takes, while it takes them.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickletools
import re
import struct
import zipfile
import zlib
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import torch

from ressl_plugin.utils.errors import Damaged

_LOCAL_HEADER = 30  # bytes, before a member's name; the last four are the lengths of what follows
_DIRECTORY = 0x10  # of which torch takes nothing, and leaves the tensor as it was allocated
_CHUNK = 1 << 20
# what zipfile raises on damaged archives, beside an OSError: of numbers beyond all files, names
# that are no text, versions and flags that nobody wrote
ZIPFILE = (zipfile.BadZipFile, ValueError, OverflowError, EOFError, RuntimeError, struct.error)


@dataclass
class _Member:
    """One record of the archive: where its bytes lie, and how many of them have been seen."""

    name: str
    start: int
    end: int
    expected: int
    seen: int = 0
    crc: int = 0

    def see(self, at: int, data: memoryview) -> None:
        """Bytes from `at` on: they count if they are the next ones."""
        if at == self.start + self.seen:
            data = data[: self.end - at]
            self.crc = zlib.crc32(data, self.crc)
            self.seen += len(data)


class CheckedFile(io.RawIOBase):
    """A checkpoint for ``torch.load`` that knows at the end whether it is what was once written.

    >>> with CheckedFile("last.ckpt") as file:
    ...     state = torch.load(file, weights_only=True)
    ...     file.check()

    Raises:
        Damaged: absent, no zip to its end, or its directory is not that of its members.
    """

    def __init__(self, path, cached: bool = True):
        self.path = Path(path)
        with self._damage():
            self.file = open(path, "rb")  # noqa: SIM115
        try:
            with self._damage():
                if not cached and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                self.archive = self._open_archive()
                self.members = [] if self.archive is None else self._members()
                for member in self.members:
                    if "/data/" not in member.name:  # small, and says what torch is to build
                        self._check(member)
                self.file.seek(0)
        except BaseException:
            self.file.close()
            raise
        self._starts = [member.start for member in self.members]

    def _open_archive(self) -> zipfile.ZipFile | None:
        """None for a file that is none: of torch's older format, a pickle, or nothing of ours."""
        magic = self.file.read(4)
        self.file.seek(0)
        if not magic:
            raise Damaged(f"{self.path} is empty")
        if magic != b"PK\x03\x04" and not zipfile.is_zipfile(self.file):
            self.file.seek(0)
            return None
        return zipfile.ZipFile(self.file)

    def _members(self) -> list[_Member]:
        found = []
        for info in self.archive.infolist():
            self.archive.open(info).close()  # its own header is there, and has the same name
            self.file.seek(info.header_offset)
            name, extra = struct.unpack("<HH", self.file.read(_LOCAL_HEADER)[-4:])
            start = info.header_offset + _LOCAL_HEADER + name + extra
            if info.compress_type != zipfile.ZIP_STORED or info.external_attr & _DIRECTORY:
                raise Damaged(f"{self.path} is damaged (the entry of {info.filename})")
            found.append(_Member(info.filename, start, start + info.file_size, info.CRC))
        return sorted(found, key=lambda member: member.start)

    @property
    def is_archive(self) -> bool:
        """Whether there are checksums at all."""
        return self.archive is not None

    def check(self) -> None:
        """Read what has not been read, and compare.

        Raises:
            Damaged: a member's bytes are not those that were written.
        """
        with self._damage():
            for member in self.members:
                self._check(member)

    def _check(self, member: _Member) -> None:
        self.file.seek(member.start + member.seen)
        while left := member.end - self.file.tell():
            if not (data := self.file.read(min(_CHUNK, left))):
                raise Damaged(f"{self.path} is truncated")
            member.see(member.start + member.seen, memoryview(data))
        if member.crc != member.expected:
            raise Damaged(f"{self.path} is damaged (the checksum of {member.name})")

    @contextlib.contextmanager
    def _damage(self):
        try:
            yield
        except Damaged:
            raise
        except FileNotFoundError:
            raise Damaged(f"{self.path} is absent") from None
        except OSError as error:
            raise Damaged(f"{self.path} cannot be read ({error.strerror or error})") from error
        except ZIPFILE as error:
            raise Damaged(f"{self.path} is damaged ({error})") from None

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See io.RawIOBase."""
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        """See io.RawIOBase."""
        return self.file.tell()

    def readinto(self, buffer) -> int:
        """See io.RawIOBase."""
        at, count = self.file.tell(), self.file.readinto(buffer)
        which = bisect_right(self._starts, at) - 1
        if which >= 0 and at < self.members[which].end:
            self.members[which].see(at, memoryview(buffer).cast("B")[:count])
        return count

    def close(self) -> None:
        """See io.RawIOBase."""
        if not self.closed:
            self.file.close()
        super().close()


def verify(path) -> bool:
    """Raise Damaged unless the bytes on the disk are those once written.

    Returns whether anything could be checked: only a zip has checksums.
    """
    with CheckedFile(path, cached=False) as file:
        file.check()
        return file.is_archive


def imports(path, error) -> list[str]:
    """Names that a pickle would import, found without running it.

    ``error`` is what ``torch.load(weights_only=True)`` raised; its text names the first.
    """
    with contextlib.suppress(Exception):  # torch's own lines alone; see checkpoint.read
        if names := torch.serialization.get_unsafe_globals_in_checkpoint(path):
            return names
    names, words = set(re.findall(r"GLOBAL ([\w.]+)", str(error))), []
    # what pickletools raises where the pickle ends, or never was one
    no_pickle = contextlib.suppress(ValueError, OverflowError, MemoryError)
    with open(path, "rb") as file, no_pickle:
        for op, argument, _ in pickletools.genops(file):
            if op.name in ("GLOBAL", "INST"):
                names.add(argument.replace(" ", "."))
            elif op.name == "STACK_GLOBAL":
                names.add(".".join(words[-2:]))
            elif isinstance(argument, str):
                words.append(argument)
    return sorted(names)
