"""Texts a second, ours beside rivals."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.pipeline.fresh import AGAIN, rate_of, shapes_of, timed
from bench.pipeline.settings import Settings, workbench
from bench.pipeline.stages import stages
from bench.pipeline.systems import ALL_LAYERS, System, Workbench
from bench.rows import Found, found, not_there
from bench.timing import quiet_garbage_collector
from geep_triton import Engine
from geep_triton.policies.policy import Policy

STAGE_ROUNDS = 3


def compared(bench: Workbench, systems: list[System], dtype: str, settings: Settings) -> list[Found]:
    """Every system checked, then timed in turns: samples a second, and shares of what the saved layers allow.

    Each round takes texts that no system has met, where the workbench has such; then all are timed again on those on which
    they were checked. `share_of_bound` is over ours at full depth, run in the same way, `share_of_rival_bound` over the
    fastest rival that runs all layers; both also by a token's mean layers, which is the honest bound where long texts stay
    longer.
    """
    checked, missing = bench.sound(systems, dtype)
    calls = {system.name: system.predict for system in checked}
    with quiet_garbage_collector():
        rounds = timed(calls, bench.fresh or [bench.rows] * settings.rounds, settings.seconds)
        again = timed(calls, [bench.rows] * AGAIN, settings.seconds) if bench.fresh else {}
    speed = {name: rate_of(turns) for name, turns in rounds.items()}
    rivals = [speed[system.name].value for system in checked if system.kind == "full"]
    ours, rival = speed["ours, full"].value, max(rivals, default=speed["ours, full"].value)
    met = [bench.lengths(chunk) for chunk in (bench.fresh or [bench.rows])[: len(next(iter(rounds.values())))]]
    for system, row in checked.items():
        name, value = system.name, speed[system.name].value
        row |= {"seconds": [turn.seconds for turn in rounds[name]], "samples_per_second": speed[name], "speed_up": value / ours}
        if name in again:
            row["again"] = {"seconds": [turn.seconds for turn in again[name]], "samples_per_second": rate_of(again[name])}
            row |= bench.neighbours(system)
        if system.kind not in ALL_LAYERS:
            continue
        layers, lengths = torch.cat([turn.layers for turn in rounds[name]][: len(met)]).double(), torch.cat(met)
        row |= {"mean_layers": float(layers.mean()), "mean_layers_of_a_token": float((layers * lengths).sum() / lengths.sum())}
        for suffix in ("", "_of_a_token"):
            bound = bench.depth / row[f"mean_layers{suffix}"]
            row[f"share_of_bound{suffix}"] = value / speed[f"ours, full{system.suffix}"].value / bound
            row[f"share_of_rival_bound{suffix}"] = value / rival / bound
    return [
        *(found(system.name, row, kind=system.kind) for system, row in checked.items()),
        *not_there(missing),
    ]


def throughput(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Ours and every rival of one precision on one data set."""
    bench = workbench(shape, data, settings, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        rivals, missing = bench.rivals(dtype, settings.compile, Path(folder))
        ours, compile_seconds = bench.ours(dtype), None
        if settings.way(dtype) == "onednn":
            ours += bench.ours(dtype, "onednn")
        if settings.compile and dtype != "int8":
            several = bench.ours(dtype, "compiled")
            compile_seconds = several[0].predict.__self__.runner.compile_seconds
            ours += several
            if settings.place == "cuda":
                ours += bench.ours(dtype, "compiled, windows") + bench.ours(dtype, "compiled, windows, prefetch")
                ours += bench.ours(dtype, "packed") if dtype == "bfloat16" else []
        rows = compared(bench, rivals + ours, dtype, settings)
    timed_rounds = max(len(row.metrics["seconds"]) for row in rows if "seconds" in row.metrics)
    lengths, every = bench.tokens.lengths, [bench.lengths(chunk) for chunk in bench.fresh[:timed_rounds]]
    way = settings.way(dtype)
    calibration = None if settings.trained(data, shape) is None else bench.model.exit_config.calibration
    facts = {
        "texts": {"samples": len(bench.rows), "tokens": int(lengths.sum()), "longest": int(lengths.max())},
        "shapes": shapes_of([lengths, *every], settings.token_budget),
        "rounds": {"wanted": settings.rounds, "with_texts": len(bench.fresh), "timed": timed_rounds},
        "layers": bench.depth,
        "replayed_layers": settings.replayed_layers(data, shape),
        "promise": None if calibration is None else " ".join(map(str, calibration["promise"])),
        "policy": None if calibration is None else calibration["chosen"]["policy"],
        "width": bench.model.config.hidden_size,
        "compile_seconds": compile_seconds,
        "way": way,
    }
    policies = {"full": "full", bench.main: bench.policies[bench.main]}
    taken = _stages(bench.engine("full", dtype, way), policies, bench.rows)
    return [
        found("", facts),
        *rows,
        *not_there(missing),
        *(found(name, {"stages": seconds}) for name, seconds in taken.items()),
    ]


def segments(shape: str, data: str, dtype: str, settings: Settings) -> list[Found]:
    """Ours with layers by another engine, beside ours with layers of its own, and that engine alone at full depth."""
    bench = workbench(shape, data, settings, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        ours = bench.ours(dtype) + (bench.ours(dtype, "onednn") if settings.way(dtype) == "onednn" else [])
        dense, missing = bench.dense_of_other_engines(dtype, Path(folder))
        under, absent = bench.under_exits(dtype, Path(folder))
        rows = compared(bench, dense + ours + under, dtype, settings)
    return [
        found("", {"layers": bench.depth, "shapes": shapes_of([bench.tokens.lengths], settings.token_budget)}),
        *rows,
        *not_there(missing | absent),
    ]


def _stages(engine: Engine, policies: dict[str, str | Policy], rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Policy -> stage -> seconds, the median of rounds in turns."""
    rounds = [
        {name: stages(engine.with_policy(policy), rows) for name, policy in policies.items()} for _ in range(STAGE_ROUNDS)
    ]
    return {
        name: {stage: statistics.median(one[name][stage] for one in rounds) for stage in rounds[0][name]} for name in policies
    }
