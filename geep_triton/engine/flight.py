"""Batches in flight: while the host waits for the decision of one, the device has the work of others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TypeVar

import torch

Result = TypeVar("Result")


class Copying:
    """Values on their way from a device to the host, which may do other work until it asks for them.

    Args:
        values: where they are. On a GPU their copy into pinned memory begins now and waits for nothing.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._values, self._arrived = values, None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def get(self) -> torch.Tensor:
        """The values on the host, which waits for them here."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu()


# A batch on its way: it yields what it has made, and a copy where it must know the values to go on; it is resumed once others
# had their turn, and asks for them then.
Run = Generator[Result | Copying, None, None]


def fly(start: Callable[[bool], Run[Result] | None], in_flight: int) -> Iterator[Result]:
    """What the runs make, `in_flight` of them by turns, the one that has waited longest first.

    On one stream copies arrive in the order they were begun, so no other run could go on sooner.

    Args:
        start: the next run, or None where none is left; it is told whether no other is in flight, whose results a run may
            have to wait for.
        in_flight: most runs at a time, at least 1.
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
