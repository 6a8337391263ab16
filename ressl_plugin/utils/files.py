"""A file is replaced as a whole, or it stays as it was."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace(path: str | Path, content: bytes) -> None:
    """Put `content` at `path`; where that fails (a full disk) nothing is left of it.

    Raises:
        OSError: naming the path.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        error.filename = os.fspath(path)  # what was wanted; of a failed write Python names none
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
