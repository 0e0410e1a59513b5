"""Batches in flight: while the host waits for a decision on one batch, the device runs others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Copying:
    """Values on their way from a device to the host. The host may do other work until it asks for them.

    Args:
        values: on the device. On a GPU their copy into pinned memory begins now and waits for nothing.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def get(self) -> torch.Tensor:
        """The values on the host. The host waits for them here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu()


# A batch on its way. It yields its results; and it yields a copy where it must know the copied values to go on. It is resumed
# after others had their turn, and asks for the values then.
Run = Generator[Result | Copying, None, None]


def fly(start: Callable[[bool], Run[Result] | None], in_flight: int) -> Iterator[Result]:
    """The results of the runs. `in_flight` of them go on by turns, and the one that has waited longest is next.

    On one stream copies arrive in the order in which they were begun, so no other run could go on sooner.

    Args:
        start: gives the next run, or None where it has none now. Its argument says whether no other run is in flight: a run
            may have to wait for the results of others.
        in_flight: how many runs are in flight at most, at least 1.
    """
    waiting: deque[Run[Result]] = deque()

    def advance(run: Run[Result]) -> Iterator[Result]:
        for step in run:
            if isinstance(step, Copying):
                waiting.append(run)
                return
            yield step

    while True:
        while len(waiting) < in_flight and (run := start(not waiting)) is not None:
            yield from advance(run)
        if not waiting:
            return
        yield from advance(waiting.popleft())
