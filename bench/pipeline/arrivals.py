"""Waiting times under random arrivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def waiting_times(predict: Callable[[Sequence[Any]], object], rows: Sequence[Any], rate: float, seed: int = 0) -> list[float]:
    """Seconds from the arrival of each row to its answer, where rows arrive at random (Poisson, `rate` a second).

    Whoever has arrived when the server is free is answered together. The clock is virtual - the server's work is measured, its
    idle time is not waited for - so that light loads take no longer to measure than heavy ones.
    """
    gaps = torch.distributions.Exponential(torch.tensor(rate, dtype=torch.float64))
    torch.manual_seed(seed)
    arrivals = gaps.sample((len(rows),)).cumsum(0).tolist()
    clock, begin, waited = 0.0, 0, []
    while begin < len(rows):
        clock = max(clock, arrivals[begin])
        end = begin + 1
        while end < len(rows) and arrivals[end] <= clock:
            end += 1
        start = time.perf_counter()
        predict(rows[begin:end])
        clock += time.perf_counter() - start
        waited += [clock - arrival for arrival in arrivals[begin:end]]
        begin = end
    return waited
