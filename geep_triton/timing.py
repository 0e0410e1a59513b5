"""Timing calls in turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping


def in_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    report: Callable[[str], None] | None = None,
    limit: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call in each of `rounds` rounds; `report` is told the name of each that is done.

    No round but the first is begun after `limit` seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for number in range(rounds):
        if number and limit is not None and time.perf_counter() - began > limit:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
            if report is not None:
                report(name)
    return seconds
