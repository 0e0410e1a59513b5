"""Timing without garbage collection at random moments, and summaries of the times."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.rows import Range


@contextmanager
def quiet_garbage_collector() -> Iterator[None]:
    """What lives already is not searched for garbage: else a full search, a fifth of a second, falls on one run by chance."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def rate(samples: int, seconds: Sequence[float]) -> Range:
    """Samples a second, by the median round; of the slowest and of the fastest."""
    return Range(samples / statistics.median(seconds), samples / max(seconds), samples / min(seconds))


def spread(values: Sequence[float]) -> Range:
    """The median of the rounds, with their range."""
    return Range(statistics.median(values), min(values), max(values))
