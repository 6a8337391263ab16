"""One process at a time, by a lock file."""

import contextlib
import logging
import os

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds of waiting before it is said


@contextlib.contextmanager
def locked(path):
    """Hold the lock file `path`; whoever comes second waits, and says so after a while.

    Raises OSError at once where no file can be made: FileLock takes "no such file" for a race with
    somebody who deletes it, and in a folder like /proc tries again for ever.
    """
    # somebody else's lock file in /tmp may be forbidden: FileLock knows what to make of that
    with contextlib.suppress(PermissionError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.warning("waiting for another process, which holds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
