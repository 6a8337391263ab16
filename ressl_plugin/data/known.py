"""What was found out about a data set, for all runs: kept by its digest, wherever it lies.

Nothing but time is lost with it: in `$RESSL_CACHE`, or in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import cache
from pathlib import Path

import numpy as np
import PIL

from ressl_plugin.utils import files

log = logging.getLogger(__name__)


def folder() -> Path:
    """Where it is kept."""
    own = os.environ.get("RESSL_CACHE")
    usual = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(own) if own else Path(usual) / "ressl_plugin"


def facts(digest: str) -> dict:
    """Name -> value of what is known of the data set with this digest; {} if nothing is."""
    try:
        content = json.loads(_file(digest).read_bytes())
    except (OSError, ValueError, RecursionError):  # absent or damaged: it is found out again
        return {}
    found = content.get("facts") if isinstance(content, dict) else None
    return found if isinstance(found, dict) and content.get("pillow") == PIL.__version__ else {}


def remember(digest: str, **new) -> None:
    """Add facts about the data set; a folder that cannot be written is said and no mistake."""
    content = {"pillow": PIL.__version__, "facts": {**facts(digest), **new}}
    _replace(_file(digest), json.dumps(content).encode())


def stamp(name: str, status: os.stat_result) -> int:
    """64 bits of a file's name, size and time."""
    text = os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def stamps(root: Path) -> set[int]:
    """Of the files below `root` that were found sound."""
    try:
        content = _stamps_file(root).read_bytes()
    except OSError:
        return set()
    return set(np.frombuffer(content[: len(content) // 8 * 8], "<u8").tolist())


def remember_stamps(root: Path, sound: set[int]) -> None:
    """Keep them in the place of those that were there."""
    _replace(_stamps_file(root), np.array(sorted(sound), "<u8").tobytes())


def _file(digest: str) -> Path:
    return folder() / f"{digest}.json"


def _stamps_file(root: Path) -> Path:
    where = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    return folder() / f"sound-{PIL.__version__}-{where}.bin"


def _replace(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, content)
    except OSError as error:
        _say(f"{path.parent} cannot be written ({error.strerror})")


@cache
def _say(why: str) -> None:
    log.info("%s: the data will be looked at again; RESSL_CACHE=DIR is another place for it", why)
