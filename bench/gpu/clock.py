"""Limits of time: a cell is stopped when the time of its part is over, and the process when all time is over."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 10.0  # seconds beyond the end for a call that cannot be interrupted
AGAIN = 5.0  # seconds after which the interruption is repeated, in case something has swallowed it


class Overrun(KeyboardInterrupt):
    """Time is over. It is no `Exception`, so that no code on the way takes it for its own error; pytest lets it pass."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Overrun` in the main thread after so many seconds. A call into C++ returns first."""

    def over(number: int, frame: object) -> None:
        raise Overrun

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Deadline:
    """The end of a run. A process that has not ended by itself some seconds later is ended, whatever it is doing.

    Args:
        seconds: how long the run may take from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self._watchdog = threading.Timer(seconds + GRACE, self._give_up)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return self._end - time.perf_counter()

    def cancel(self) -> None:
        """The run has ended by itself."""
        self._watchdog.cancel()

    def _give_up(self) -> None:
        print("out of time: the process ends here; every result so far is in the file", flush=True)
        sys.stderr.flush()
        os._exit(3)
