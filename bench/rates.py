"""Samples a second of engines, in turns with full depth."""

from __future__ import annotations

import math
import statistics
from functools import partial

import torch

from bench.timing import quiet_garbage_collector
from geep_triton import Engine
from geep_triton.timing import in_turns
from geep_triton.tokens.columns import Row
from geep_triton.tokens.ragged import Tokens

WARM_UP = 64  # texts
ATTEMPTS = 3
STEADY = 0.05  # drift of full depth within one measurement


def rates(engines: dict[str, Engine], rows: list[Row] | Tokens, rounds: int) -> tuple[dict[str, float], float]:
    """Samples a second of each engine, median of interleaved rounds; and how far full depth at the end of the turns was from
    that at their start. A machine that was busy with something else in between is measured again, a few times.

    Args:
        engines: by name; that of full depth is "full".
        rows: they predict.
        rounds: each of one turn of every engine.
    """
    some = rows[:WARM_UP] if isinstance(rows, list) else rows.select(torch.arange(min(WARM_UP, len(rows))))
    for engine in engines.values():
        engine.predict(some)
    calls = {name: partial(engine.predict, rows) for name, engine in engines.items()}
    best: tuple[dict[str, float], float] = {}, math.inf
    for _ in range(ATTEMPTS):
        with quiet_garbage_collector():
            seconds = in_turns({**calls, "full at the end": calls["full"]}, rounds)
        found = {name: len(rows) / statistics.median(values) for name, values in seconds.items()}
        drift = abs(found.pop("full at the end") / found["full"] - 1)
        best = min(best, (found, drift), key=lambda attempt: attempt[1])
        if drift <= STEADY:
            break
    return best
