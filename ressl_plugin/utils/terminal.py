"""Output on a terminal or into a file that cannot show every letter."""

from __future__ import annotations

import codecs
import sys

HANDLER = "ressl"
PLAIN = {"±": "+-", "…": "...", "−": "-", "–": "-", "—": "-", "×": "x", "τ": "tau"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    shown = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in letters)
    return "".join(shown), error.end


def show_everything() -> None:
    """Letters that stdout and stderr cannot show are written in ASCII, instead of a traceback."""
    codecs.register_error(HANDLER, _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a notebook has put its own
            stream.reconfigure(errors=HANDLER)
