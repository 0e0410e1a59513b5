"""Measures which stages take the time of a window."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from geep_triton import Engine

TIMED = {"embed": "embeddings", "run_layers": "layers", "run_head": "heads", "gate": "gates"}


def stages(engine: Engine, rows: Sequence[Any]) -> dict[str, float]:
    """Seconds per stage of one `predict`, whose calls are timed one by one: a little more than it takes unwatched."""
    seconds: Counter[str] = Counter()
    device = engine.model.device

    def timed(stage: str, call: Callable) -> Callable:
        def run(*args: Any) -> Any:
            start = time.perf_counter()
            result = call(*args)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[stage] += time.perf_counter() - start
            return result

        return run

    watched, runner, policy = copy.copy(engine), copy.copy(engine.runner), engine.policy
    for name, stage in TIMED.items():
        setattr(runner, name, timed(stage, getattr(runner, name)))
    watched.runner = runner
    start = SimpleNamespace(check=policy.start.check, stops=timed("predict", policy.start.stops))
    watched.policy = replace(policy, start=start)
    timings = watched.predict(rows).timings
    run = sum(seconds[stage] for stage in TIMED.values())
    return {
        "tokenize": timings["tokenize"],
        "predict": seconds["predict"],
        "sort": timings["plan"] - seconds["predict"],
        **{stage: seconds[stage] for stage in TIMED.values() if stage in seconds},
        "pad, move, pool, decide": timings["run"] - run,
        "un-permute": timings["gather"],
    }
