"""Time that is limited: a cell is stopped where its part's time ends, the process where all of it does."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GRACE = 10.0  # seconds that a call which cannot be interrupted is given beyond the end


AGAIN = 5.0  # seconds after which an interruption that something swallowed is repeated


class Overrun(KeyboardInterrupt):
    """Time is over. No `Exception`, so that nothing on the way takes it for an error of its own; pytest lets this kind pass."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Overrun` in this, the main thread, once so much time has passed; a call into C++ is left first."""

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
    """The end of a run. What has not ended by itself some seconds later is ended, whatever it is doing.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self._watchdog = threading.Timer(seconds + GRACE, self._give_up)
        self._watchdog.daemon = True
        self._watchdog.start()

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.perf_counter()

    def cancel(self) -> None:
        """The run has ended by itself."""
        self._watchdog.cancel()

    def _give_up(self) -> None:
        print("out of time: the process ends here; every result so far is in the file", flush=True)
        sys.stderr.flush()
        os._exit(3)
