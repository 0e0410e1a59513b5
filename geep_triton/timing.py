"""Times several calls in turns, so that a machine that slows down affects all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def in_turns(
    calls: Mapping[Name, Callable[[], object]],
    rounds: int,
    report: Callable[[Name], None] | None = None,
    limit: float | None = None,
) -> dict[Name, list[float]]:
    """Time each call once per round.

    Args:
        calls: the calls by name.
        rounds: number of rounds.
        report: called with the name of each call that is done.
        limit: after this many seconds no further round starts (the first always runs). None: no limit.

    Returns:
        Seconds of each call in each round, by name.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
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


def rates(
    calls: Mapping[Name, Callable[[], object]], count: int, rounds: int, report: Callable[[Name], None] | None = None
) -> dict[Name, float]:
    """How many of the `count` things that each call does it does in a second: the median of interleaved rounds."""
    return {name: count / statistics.median(values) for name, values in in_turns(calls, rounds, report).items()}
