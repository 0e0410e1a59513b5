"""Runs child processes that are killed: by themselves at a random change to files, or by their parent at a random moment."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PATIENCE = 40.0  # seconds; a child takes one or two
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"}


class ChildFailed(RuntimeError):
    """A child ended with an error of its own, or it did not end."""


def run_killed(action: Callable[[], None], random_: random.Random, most_changes: int, most_seconds: float, log: Path) -> bool:
    """Run an action in a forked process that is killed, unless it ends before.

    In half of the calls the child kills itself at one of its changes to files, and the seed alone decides at which. In the
    other half it is killed after a random time, and another run kills it elsewhere.

    Args:
        action: what the child does.
        random_: chooses how and when the child is killed.
        most_changes: the child kills itself at this change to files or at an earlier one.
        most_seconds: the child is killed after so many seconds or fewer.
        log: the file of its stdout and stderr.

    Returns:
        Whether the child ended by itself.

    Raises:
        ChildFailed: the child ended with an error, or it did not end.
    """
    at_change = random_.random() < 0.5
    change, seconds = random_.randint(1, most_changes), random_.uniform(0.0, most_seconds)
    child = _fork(action, change if at_change else None, log)
    if not at_change:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return _ended(child, log)


def run_child(action: Callable[[], None], log: Path) -> None:
    """Run an action in a forked process to its end."""
    _ended(_fork(action, None, log), log)


def _fork(action: Callable[[], None], change: int | None, log: Path) -> int:
    child = os.fork()
    if child:
        return child
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        if change is not None:
            _die_at(change)
        action()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def _die_at(change: int) -> None:
    """Make this process kill itself at its change to files of this number, from 1."""
    left = [change]

    def hook(event: str, arguments: tuple) -> None:
        if event in CHANGES or (event == "open" and set(str(arguments[1])) & set("wxa+")):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _ended(child: int, log: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, -signal.SIGKILL):
                raise ChildFailed(f"a child ended with {code}: {log.read_text(errors='replace')[-400:]}")
            return code == 0
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise ChildFailed(f"a child did not end within {PATIENCE:g} s")
