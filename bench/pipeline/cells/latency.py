"""Time to an answer where texts arrive one by one."""

from __future__ import annotations

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from bench.pipeline.arrivals import waiting_times
from bench.pipeline.settings import Settings, workbench
from bench.rows import Found, found, not_there
from geep_triton.timing import in_turns

LOADS = (0.3, 0.6, 0.9)  # of what full depth on length-sorted batches can take
ARRIVALS = 256


def latency(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Median and 99th percentile of the time to an answer under random arrivals, at several loads."""
    bench = workbench(shape, data, settings)
    with tempfile.TemporaryDirectory() as folder:
        rivals, _ = bench.rivals(dtype, False, Path(folder))
    chosen = [system for system in rivals if system.name.endswith(", length-sorted") and system.kind == "full"]
    chosen += [system for system in rivals if system.kind == "exits"]
    ways = dict.fromkeys(["plain", settings.way(dtype)] + ["graphs"] * (settings.place == "cuda"))
    ours = [system for way in ways for system in bench.ours(dtype, way)]
    chosen += [system for system in ours if system.name.startswith(("ours, full", f"ours, {bench.main}"))]
    checked, missing = bench.sound(chosen, dtype)
    chosen = list(checked)
    began = time.perf_counter()
    full = in_turns({"full": partial(chosen[0].predict, bench.rows)}, settings.rounds, limit=settings.seconds)["full"]
    capacity = len(bench.rows) / statistics.median(full)
    arriving, rows = bench.rows * (1 if settings.dry else -(-ARRIVALS // len(bench.rows))), []
    for load in LOADS:
        waits: dict[str, list[list[float]]] = {system.name: [] for system in chosen}
        # The first round is not counted: it makes the kernels of the batches that arrive. Each begins with another system.
        for number in range(settings.rounds + 1):
            if number > 1 and settings.seconds is not None and time.perf_counter() - began > settings.seconds:
                break
            for system in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
                waited = torch.tensor(waiting_times(system.predict, arriving, load * capacity, number), dtype=torch.float64)
                waits[system.name].append(waited.quantile(torch.tensor([0.5, 0.99], dtype=torch.float64)).tolist())
        for name, several in waits.items():
            p50, p99 = (statistics.median(values) for values in zip(*several[1:], strict=True))
            rows.append(found(name, {"p50": p50, "p99": p99}, load=load))
    facts = {"rate_of_load_1": capacity, "samples": len(arriving)}
    facts |= {"layers": bench.depth, "replayed_layers": settings.replayed_layers(data, shape)}
    return [found("", facts), *rows, *not_there(missing)]
