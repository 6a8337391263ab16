"""The exceptions that say what happened in one line: a user's mistake, and a run's fault."""

import multiprocessing
import os
import pickle

LONGEST = 3000  # characters: a message may quote what somebody else wrote

# What the machine raises: a file, a socket, half a message, a killed process, memory. torch makes
# RuntimeErrors of all of these, and of much else.
OF_THE_MACHINE = (
    OSError, EOFError, MemoryError, pickle.UnpicklingError, multiprocessing.ProcessError,
    RuntimeError,
)  # fmt: skip


def printable(text: str) -> str:
    """Text that any terminal takes as one line: what is no letter, as \\x1b and the like."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class UserError(Exception):
    """A mistake in a config, a path, a file or an argument.

    The message is one line: what is wrong, where (key, file, value), what would be right.
    The command line prints it without a traceback and exits with status 2.
    """

    def __init__(self, message: str):
        # one line, whatever a key, a file name or a library's own message holds
        line = printable(message)
        if len(line) > LONGEST:  # what is wrong stands first, what would be right last
            line = f"{line[: LONGEST // 2]}…{line[-LONGEST // 2 :]}"
        super().__init__(line)


class RunFault(Exception):
    """A run that had to stop; the message names the reason and the last good checkpoint."""

    status = 3  # of the process that it ends


class RankLost(RunFault):
    """One of several processes is gone, and the others cannot go on: start the run again."""

    status = os.EX_TEMPFAIL


class CheckpointError(UserError):
    """A checkpoint cannot be used; says which, why, and what is still good."""


class Damaged(CheckpointError):
    """Absent, truncated or altered: the one before it may serve."""


class NotSaved(RunFault):
    """A checkpoint could not be written; the message names the one that is still good."""


def own_words(error: UserError) -> str:
    """The message, without the traceback that PyTorch puts before that of a worker."""
    return str(error).rsplit("errors.UserError: ", 1)[-1].removesuffix("\\n")
