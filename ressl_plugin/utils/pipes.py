"""Output that nobody reads any more (`ressl pretrain … | head`, a lost connection) ends no work."""

from __future__ import annotations

import errno
import io
import os
import sys


class _Raw(io.FileIO):
    """A file descriptor that leads nowhere once its reader is gone."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # of a pipe, of a terminal
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(data)


def outlive_readers() -> None:
    """From now on, what is written to a closed pipe or terminal is dropped.

    Streams that somebody else has put there are left alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or type(stream) is not io.TextIOWrapper:
            continue
        buffered = type(stream.buffer) is io.BufferedWriter  # else PYTHONUNBUFFERED is set
        if type(stream.buffer.raw if buffered else stream.buffer) is not io.FileIO:
            continue
        stream.flush()
        raw = _Raw(stream.fileno(), "w", closefd=False)
        made = io.TextIOWrapper(
            io.BufferedWriter(raw) if buffered else raw,
            encoding=stream.encoding,
            errors=stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, made)
