"""What an error means to whoever started a command: one line, and an exit code."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import torch

from geep_triton.checks import OutputTaken
from geep_triton.promises.terms import CannotPromise

BUG = 1
USAGE = 2
REFUSED = 3
NO_PROMISE = 4
TAKEN = 5
SYSTEM = 6
INTERRUPTED = 130
TERMINATED = 143
MEANINGS = {
    0: "done",
    BUG: "an error of the program itself; or whoever read its output has gone, which is told to nobody",
    USAGE: "an option or argument that there is not, or that is missing",
    REFUSED: "inputs, model or arguments do not fit",
    NO_PROMISE: "no such promise can be made: too few texts, or no policy is as fast",
    TAKEN: "the output belongs to another run, or another process works there",
    SYSTEM: "the system refused: the disk is full, a file may not be read, there is no memory left",
    INTERRUPTED: "stopped by Ctrl-C; the same command goes on",
    TERMINATED: "stopped by SIGTERM; the same command goes on",
}


@dataclass(frozen=True)
class Failure:
    """Why a command stopped.

    Attributes:
        code: its exit code, a key of `MEANINGS`.
        message: one line.
    """

    code: int
    message: str


def failure_of(error: BaseException) -> Failure:
    """What an exception that ended a command means."""
    if hasattr(error, "format_message"):  # the command line's own, which say what is wrong with it
        return Failure(USAGE, _one_line(error.format_message()))
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return Failure(INTERRUPTED, "stopped")
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return Failure(REFUSED, _one_line(str(error)))
    for kind, code in ((CannotPromise, NO_PROMISE), (OutputTaken, TAKEN), (OSError, SYSTEM)):
        if isinstance(error, kind):
            return Failure(code, _one_line(_of_system(error)))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return Failure(SYSTEM, f"no memory left; a smaller --window or --batch-size needs less ({_one_line(str(error))})")
    if isinstance(error, (ValueError, TypeError, ImportError)):
        return Failure(REFUSED, _one_line(str(error)))
    text = _one_line(f"{type(error).__name__}: {error}")
    return Failure(BUG, f"{text} (this is a bug; `geep --traceback` before the command shows where)")


def _of_system(error: Exception) -> str:
    """An error's text; of a full disk in plain words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk of {error.filename or 'the output'}; the same command goes on once there is some"
    return str(error)


def _one_line(text: str) -> str:
    return " ".join(text.split())
