"""Figures of rounds of load."""

from __future__ import annotations

import math
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from bench.rows import Range
from bench.serving.loads import Outcome
from bench.timing import quiet_garbage_collector, spread


@dataclass(frozen=True)
class Round:
    """What one round of load was.

    Attributes:
        outcomes: of its requests.
        seconds: from its start until the last was answered.
        busy: the share of these in which the loading process computed: near 1, it was the bottleneck.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    busy: float

    def answered(self) -> list[Outcome]:
        """Those with status 200."""
        return [one for one in self.outcomes if one.reply is not None and one.reply.status == 200]


async def timed(loading: Coroutine[Any, Any, list[Outcome]]) -> Round:
    """Run a load, and take its time."""
    with quiet_garbage_collector():
        start, computed = time.perf_counter(), time.process_time()
        outcomes = await loading
        seconds = time.perf_counter() - start
        return Round(outcomes, seconds, (time.process_time() - computed) / seconds)


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that so many are not above. Raises ValueError: there is none."""
    if not values:
        raise ValueError("values must not be empty")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """Answers a second by the median round, and waiting times in milliseconds over all rounds; each with the rounds' range."""
    rates = [len(one.answered()) / one.seconds for one in rounds]
    waits = [[1000 * outcome.seconds for outcome in one.answered()] for one in rounds]
    found: dict[str, Any] = {"answers_per_second": spread(rates)}
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
        each = [quantile(of, share) for of in waits]
        found[name] = Range(quantile([one for of in waits for one in of], share), min(each), max(each))
    outcomes = [one for of in rounds for one in of.outcomes]
    found["requests"] = len(outcomes)
    found["refused"] = sum(one.reply is not None and one.reply.status == 429 for one in outcomes)
    found["sent_late_p99_ms"] = quantile([1000 * (one.sent - one.due) for one in outcomes], 0.99)
    found["generator_busy"] = max(one.busy for one in rounds)
    return found
