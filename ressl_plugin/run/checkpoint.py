"""Write a checkpoint that cannot be lost, and read one without trusting it.

A checkpoint is an ordinary ``torch.save`` file; the CRCs of its zip are checked whenever it is
written or read. Order of a save; a crash between any two steps leaves a file that loads::

    RUN/.last.ckpt.tmp      written, synced, read back from the disk and checked
    RUN/previous/last.ckpt  becomes a second name of the last good RUN/last.ckpt
    RUN/best.ckpt           becomes one of the new file, where that is the best so far
    RUN/last.ckpt           is replaced by the new file

The disk holds up to three checkpoints (and the best) for a moment, two otherwise. Where it has no
room for three, the one before the last is given up first.
"""

import contextlib
import errno
import io
import logging
import os
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ressl_plugin.run.checksum import read_checked, verify
from ressl_plugin.utils.errors import CheckpointError, Damaged, NotSaved

log = logging.getLogger(__name__)

NAME, BEST = "last.ckpt", "best.ckpt"
PREVIOUS = "previous"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}

# path -> (inode, size, time) of a file this process has checked: a save need not read it again.
_checked: dict[str, tuple] = {}
_given_up: set[str] = set()  # paths whose `previous` has made room, once said


@dataclass
class Loaded:
    """A checkpoint that has been read: looked at first, then handed over, to be read once."""

    path: Path
    state: dict | None  # until it is handed over


def previous(path) -> Path:
    """Where the checkpoint before ``path`` is kept."""
    path = Path(path)
    return path.parent / PREVIOUS / path.name


def save(path, state: dict, best: bool = False) -> Path:
    """Write ``state`` to ``path``; until that is certain, what was there stays in place.

    Args:
        path: file to write; its directory is made if absent. The file that stood there, if it is
            intact, is kept as ``previous/<name>`` beside it.
        state: tensors, numbers, strings, and dicts, lists and tuples of them.
        best: it is the run's best so far, and stays as ``best.ckpt`` beside it, too.

    Raises:
        NotSaved: the disk is full, the directory cannot be written, or the file reads back
            differently. The message names the checkpoint that is still good.
        CheckpointError: ``state`` holds something that only pickle could restore.
    """
    path = Path(path)
    temporary, content = _temporary(path), _archive(path, state)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, content)
        except OSError as error:
            if not _made_room(error, path):
                raise
            _write(temporary, content)
        verify(temporary)
        _keep_previous(path)
        if best:  # before `path`, whose state says how good the best is
            _keep_best(temporary, path.with_name(BEST))
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, Damaged) as error:
        raise NotSaved(
            f"checkpoint {path} not written: {_reason(error, path)}; {_still_good(path)}"
        ) from error
    finally:
        _remove(temporary)
    _checked[str(path)] = _identity(path)
    return path


def load(path) -> dict:
    """Read a checkpoint; fall back to the one before it when it is damaged, saying so in the log.

    Only tensors and plain values are ever built (``weights_only``), the tensors in host memory.

    Args:
        path: a checkpoint, or a run directory (see `find`).

    Raises:
        CheckpointError: the file needs pickle (refused, nothing of it is executed), or neither it
            nor ``previous/<name>`` is usable; the message names both.
    """
    path = find(path) if Path(path).is_dir() else Path(path)
    problems = []
    for candidate in (path, previous(path)):
        try:
            state = read(candidate)
        except Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; going on from the one before, %s", problems[0], candidate)
        return state
    raise CheckpointError("no usable checkpoint: " + "; ".join(problems))


def read(path) -> dict:
    """Read exactly this file, once, checked, ``weights_only``, without falling back.

    Raises:
        CheckpointError: absent, damaged, in need of pickle, or not a dict.
    """
    path = Path(path)
    file, is_archive = read_checked(path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not foreign and not is_archive:
            raise Damaged(f"{path} is not a checkpoint") from None
        raise CheckpointError(
            f"{path}: refused, reading it would import {foreign[1] if foreign else 'code'}; "
            "nothing of it was executed. Only tensors and plain values are read: save its "
            "state_dict alone, where the file is trusted"
        ) from None
    except Exception as error:
        # Nothing narrower: torch's unpickler does what the bytes say, and raises whatever comes of
        # it. Nothing of ours is called by it.
        if is_archive and isinstance(error, (MemoryError, torch.OutOfMemoryError)):
            raise
        why = str(error).strip().partition("\n")[0][:120]
        raise Damaged(f"{path} cannot be read ({type(error).__name__}: {why})") from None
    if is_archive:
        with contextlib.suppress(OSError):  # it may be gone by now
            _checked[str(path)] = _identity(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds a {type(state).__name__}; a checkpoint is a dict")
    return state


def find(where) -> Path:
    """The checkpoint meant by a file or a run directory.

    A directory gives its ``last.ckpt``, else ``previous/last.ckpt``, else the newest ``*.ckpt``
    in it (the host names them by run and epoch).

    Raises:
        CheckpointError: there is none.
    """
    where = Path(where)
    if where.is_dir():
        if (where / NAME).is_file():
            return where / NAME
        if (where / PREVIOUS / NAME).is_file():
            log.warning("%s is absent; using %s", where / NAME, where / PREVIOUS / NAME)
            return where / PREVIOUS / NAME
        found = [p for p in where.glob("*.ckpt") if not p.name.startswith(".")]
        if found:
            return max(found, key=lambda p: (p.stat().st_mtime_ns, p.name))
        raise CheckpointError(f"{where}: no checkpoint here; {NAME} or *.ckpt expected")
    if not where.is_file() and not previous(where).is_file():
        raise CheckpointError(f"{where}: no such checkpoint; give a file or a run directory")
    return where


def _temporary(path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _archive(path, state) -> memoryview:
    """The file in memory: torch's writer ends the process where a disk or a signal cuts it off."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(file):
        raise CheckpointError(
            f"checkpoint {path} not written: the state holds {', '.join(foreign)}, which only "
            "pickle restores; keep tensors, numbers, strings and containers of them"
        )
    return file.getbuffer()


def _write(path, content):
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _made_room(error: OSError, path) -> bool:
    """Whether the disk was full and the checkpoint before the last could be given up for that."""
    spare = previous(path)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not spare.is_file():
        return False
    if not _is_good(path) or os.path.samefile(path, spare):
        return False
    _remove(_temporary(path))
    os.unlink(spare)
    if str(path) not in _given_up:
        log.warning("no room for three checkpoints: %s is given up while one is saved", spare)
        _given_up.add(str(path))
    return True


def _keep_previous(path):
    """Give the good file at ``path`` its second name; a damaged one must not oust a good one."""
    if not path.exists():
        return
    if _checked.get(str(path)) != _identity(path) and not _is_good(path):
        log.warning("%s is damaged; %s is kept as it is", path, previous(path))
        return
    target = previous(path)
    target.parent.mkdir(exist_ok=True)
    if target.exists() and os.path.samefile(path, target):
        return
    try:
        _put(path, target, os.link)
    except OSError as error:
        if error.errno in FULL:
            raise
        os.replace(path, target)  # no hard links here: the good file is never without a name
    _sync_directory(target.parent)


def _keep_best(path, target):
    try:
        _put(path, target, os.link)
    except OSError as error:
        if error.errno in FULL:
            raise
        _put(path, target, lambda path, copy: _write(copy, path.read_bytes()))  # no hard links here


def _put(path, target, make):
    """Replace ``target`` by what ``make`` makes of the file at ``path``."""
    made = _temporary(target)
    _remove(made)
    make(path, made)
    os.replace(made, target)


def _is_good(path) -> bool:
    try:
        return verify(path)
    except Damaged:
        return False


def _sync_directory(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(path):
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _remove(path):
    with contextlib.suppress(OSError):
        os.unlink(path)


def _reason(error, path) -> str:
    if isinstance(error, Damaged):
        return str(error)
    if error.errno in FULL:
        return f"no space left for it ({error.strerror}); free some on the disk of {path.parent}"
    if error.errno in _FORBIDDEN:
        return f"{path.parent} cannot be written ({error.strerror}); choose another run_dir"
    return error.strerror or str(error)


def _still_good(path) -> str:
    for candidate in (path, previous(path)):
        if _is_good(candidate):
            return f"{candidate} is still good"
    return "there is no earlier one"
