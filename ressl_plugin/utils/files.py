"""A file is replaced as a whole or stays as it was; a lock file lets in one process at a time; the
lines of a text file."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import time
from pathlib import Path

from ressl_plugin.utils.errors import UserError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: str | Path):
    """A binary file that is at `path` once the block has ended, on the disk; its folder is made.

    Where the block or the disk fails nothing is left of it.

    Raises:
        OSError: naming the path, or the folder that cannot be made.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename in (None, os.fspath(partial)):  # of a failed write Python names none
            error.filename = os.fspath(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def replace(path: str | Path, content: bytes) -> None:
    """Put `content` at `path`, see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def lines(path: Path) -> list[str]:
    """The lines of a user's text file that hold something, stripped.

    Raises:
        UserError: it is not there, or no UTF-8.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable text file ({error})") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


@contextlib.contextmanager
def locked(path: Path, seconds: float = math.inf):
    """Hold the lock file `path`; whoever comes second waits, and says so.

    A POSIX lock: data workers do not inherit it, and a killed process no longer has it.

    Raises:
        TimeoutError: another process still has it after `seconds`.
        OSError: no file can be made there.
    """
    # /tmp may refuse to create what somebody else has created there, and yet open it
    descriptor = os.open(path, os.O_RDWR | (0 if path.exists() else os.O_CREAT), 0o666)
    try:
        _wait_for(descriptor, path, seconds)
        yield
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, path: Path, seconds: float) -> None:
    end, patience = time.monotonic() + seconds, time.monotonic() + 1
    while True:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError):  # held
            now = time.monotonic()
        except OSError as error:  # a file system without locks
            log.warning("%s: no lock (%s); start one process at a time there", path, error)
            return
        if now > end:
            raise TimeoutError(f"{path} is held by another process")
        if now > patience:
            log.warning("waiting for another process, which holds %s", path)
            patience = math.inf
        time.sleep(0.1)
