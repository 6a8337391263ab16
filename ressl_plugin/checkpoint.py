"""Write a checkpoint that cannot be lost, and read one without trusting it.

A checkpoint is an ordinary ``torch.save`` file with its checksum inside (see seal.py).
Order of a save; a crash between any two steps leaves a file that loads::

    RUN/.last.ckpt.tmp      written, synced, read back and compared with its checksum
    RUN/previous/last.ckpt  becomes a second name of the last good RUN/last.ckpt
    RUN/last.ckpt           is replaced by the new file

The disk holds up to three checkpoints for a moment, two otherwise.
"""

import contextlib
import errno
import logging
import os
import pickle
from pathlib import Path

import torch

from ressl_plugin.seal import CheckpointError, Damaged, SealingFile, imports, verify

log = logging.getLogger(__name__)

NAME = "last.ckpt"
PREVIOUS = "previous"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}

# path -> (inode, size, time) of a file this process has checked: a save need not read it again.
_checked: dict[str, tuple] = {}


def previous(path) -> Path:
    """Where the checkpoint before ``path`` is kept."""
    path = Path(path)
    return path.parent / PREVIOUS / path.name


def save(path, state: dict) -> Path:
    """Write ``state`` to ``path``; until that is certain, what was there stays in place.

    Args:
        path: file to write; its directory is made if absent. The file that stood there, if it is
            intact, is kept as ``previous/<name>`` beside it.
        state: tensors, numbers, strings, and dicts, lists and tuples of them.

    Raises:
        CheckpointError: the disk is full, the directory cannot be written, the file reads back
            differently, or ``state`` holds something that only pickle could restore. The message
            names the checkpoint that is still good.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(temporary, state)
        verify(temporary)
        if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
            raise CheckpointError(
                f"checkpoint {path} not written: the state holds {', '.join(foreign)}, which only "
                "pickle restores; keep tensors, numbers, strings and containers of them"
            )
        _keep_previous(path)
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except (OSError, Damaged) as error:
        _remove(temporary)
        raise CheckpointError(
            f"checkpoint {path} not written: {_reason(error, path)}; {_still_good(path)}"
        ) from error
    except BaseException:
        _remove(temporary)
        raise
    _checked[str(path)] = _identity(path)
    return path


def load(path, map_location="cpu") -> dict:
    """Read a checkpoint; fall back to the one before it when it is damaged, saying so in the log.

    Only tensors and plain values are ever built (``weights_only``).

    Args:
        path: a checkpoint, or a run directory (see `find`).
        map_location: as in ``torch.load``.

    Raises:
        CheckpointError: the file needs pickle (refused, nothing of it is executed), or neither it
            nor ``previous/<name>`` is usable; the message names both.
    """
    path = find(path) if Path(path).is_dir() else Path(path)
    problems = []
    for candidate in (path, previous(path)):
        try:
            state = read(candidate, map_location)
        except Damaged as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; going on from the one before, %s", problems[0], candidate)
        return state
    raise CheckpointError("no usable checkpoint: " + "; ".join(problems))


def read(path, map_location="cpu") -> dict:
    """Read exactly this file, checked, ``weights_only``, without falling back.

    Raises:
        CheckpointError: absent, damaged, in need of pickle, or not a dict.
    """
    path = Path(path)
    sound = verify(path)
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if names := imports(path, error):
            raise CheckpointError(
                f"{path}: refused, reading it would import {', '.join(names)}; nothing of it was "
                "executed. Only tensors and plain values are read: save its state_dict alone, "
                "where the file is trusted"
            ) from None
        if sound:
            raise CheckpointError(
                f"{path}: refused, it cannot be read without pickle; nothing of it was executed"
            ) from None
        raise Damaged(f"{path} is not a checkpoint") from None
    except Exception as error:  # whatever torch makes of bytes that are no checkpoint
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise Damaged(f"{path} cannot be read ({first[0][:120]})") from None
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


def _write(path, state):
    with open(path, "wb") as file:
        sealing = SealingFile(file)
        try:
            torch.save(state, sealing)
        except Exception as error:
            raise (sealing.error or _first(error)) from None
        sealing.seal()
        file.flush()
        os.fsync(file.fileno())


def _first(error: Exception) -> BaseException:
    """What ended torch.save: its archive, cut off by that, ends with a complaint of its own."""
    cut_off = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return error.__context__ if cut_off and error.__context__ is not None else error


def _keep_previous(path):
    """Give the good file at ``path`` its second name; a damaged one must not oust a good one."""
    if not path.exists():
        return
    if _checked.get(str(path)) != _identity(path):
        try:
            if not verify(path):
                raise Damaged(f"{path} is not a checkpoint")
        except Damaged as error:
            log.warning("%s; %s is kept as it is", error, previous(path))
            return
    target = previous(path)
    target.parent.mkdir(exist_ok=True)
    if target.exists() and os.path.samefile(path, target):
        return
    link = target.with_name(f".{target.name}.tmp")
    _remove(link)
    try:
        os.link(path, link)
    except OSError as error:
        if error.errno in FULL:
            raise
        os.replace(path, target)  # no hard links here: the good file is never without a name
    else:
        os.replace(link, target)
    _sync_directory(target.parent)


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
        with contextlib.suppress(Damaged):
            if verify(candidate):
                return f"{candidate} is still good"
    return "there is no earlier one"
