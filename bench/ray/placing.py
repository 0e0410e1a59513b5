"""Two kinds of actors: texts placed by foretold depth, at random, from both ends, and wherever an actor is free."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bench.rows import Found, found
from bench.timing import spread
from geep_triton.engine.source import EngineSource
from geep_triton.serving.ray.placing import choose_cut
from geep_triton.serving.ray.planner import LAYERS, WORK, Planner

# How often an actor runs the layers of each batch. All have one core of this machine. One that runs them three times stands for
# a machine whose device is a third as fast; what tokenizes there is as fast.
KINDS: Mapping[str, int] = {"slow": 3, "fast": 1}
CLOSE = 1e-3  # scores of texts that lie in other batches


class Answering:
    """An actor that tokenizes batches, and runs the layers of each as often as its kind does."""

    def __init__(self, times: int, model: str, policy: str | None) -> None:
        self.times, self.engine = times, EngineSource(model, policy, truncation=True).load()

    def answer(self, batch: pa.Table) -> pa.Table:
        tokens = self.engine.encode(batch["text"].to_pylist())
        for _ in range(self.times):
            answers = self.engine.predict(tokens)
        scores = answers.probabilities.amax(dim=1).numpy()
        return batch.append_column("label", pa.array(answers.labels)).append_column("score", pa.array(scores))


class Batch(NamedTuple):
    """Rows, and the kinds of actors that may answer them."""

    rows: pa.Table
    kinds: frozenset[str]


def run(batches: Sequence[Batch], actors: Mapping[str, Any]) -> tuple[float, pa.Table]:
    """Answer all batches: the slow actor the first that it may, the fast one the last. Seconds, and the rows in their order."""
    import ray

    left, busy, answers = list(batches), {}, []
    free = dict(actors)
    start = time.perf_counter()
    while left or busy:
        for kind in list(free):
            batch = next((one for one in (left if kind == "slow" else left[::-1]) if kind in one.kinds), None)
            if batch is not None:
                left.remove(batch)
                busy[free.pop(kind).answer.remote(batch.rows)] = kind
        (ready, *_), _ = ray.wait([*busy], num_returns=1)
        answers.append(ray.get(ready))
        kind = busy.pop(ready)
        free[kind] = actors[kind]
    return time.perf_counter() - start, pa.concat_tables(answers).sort_by("order")


def cut_up(rows: pa.Table, size: int, kinds: frozenset[str]) -> list[Batch]:
    return [Batch(rows.slice(start, size), kinds) for start in range(0, rows.num_rows, size)]


def of_two(slow: pa.Table, fast: pa.Table, size: int) -> list[Batch]:
    return [*cut_up(slow, size, frozenset({"slow"})), *cut_up(fast, size, frozenset({"fast"}))]


def placing(
    model: Path, policy: str | None, texts: list[str], size: int, rounds: int, seed: int, deadline: float
) -> list[Found]:
    """Seconds by turns, answers checked to be the same first."""
    import ray

    rows = pa.table({"order": range(len(texts)), "text": texts})
    start = time.perf_counter()
    planner = Planner(str(model))
    planned = planner(rows)
    plan_seconds = time.perf_counter() - start
    layers, work = planned[LAYERS].to_numpy(), planned[WORK].to_numpy()
    ray.init(address="local", num_cpus=len(KINDS), include_dashboard=False, log_to_driver=False, object_store_memory=200 << 20)
    try:
        kind = ray.remote(Answering).options(num_cpus=1)
        actors = {name: kind.remote(times, str(model), policy) for name, times in KINDS.items()}
        sample = rows.take(random.Random(seed).sample(range(len(texts)), min(size, len(texts))))
        for actor in actors.values():
            ray.get(actor.answer.remote(sample))
        speeds = {
            name: sample.num_rows / run(cut_up(sample, size, frozenset({name})), {name: actor})[0]
            for name, actor in actors.items()
        }
        share = speeds["slow"] / sum(speeds.values())
        cut = choose_cut(layers, work, share)
        shallow = layers <= cut
        shuffled = rows.take(random.Random(seed).sample(range(len(texts)), len(texts)))
        parted = int(share * len(texts))
        places = {
            "by depth": of_two(rows.filter(pa.array(shallow)), rows.filter(pa.array(~shallow)), size),
            "deep to the slow": of_two(*deep_first(rows, layers, work, share), size),
            "at random": of_two(shuffled.slice(0, parted), shuffled.slice(parted), size),
            "from both ends": cut_up(rows.take(np.argsort(layers, kind="stable")), size, frozenset(KINDS)),
            "anywhere": cut_up(rows, size, frozenset(KINDS)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in places}
        reference = None
        for number in range(rounds + 1):  # the first is to compare answers
            for name, batches in places.items():
                spent, answers = run(batches, actors)
                reference = reference or answers
                check_same(name, reference, answers)
                if number:
                    seconds[name].append(spent)
    finally:
        ray.shutdown()
    common = {"texts": len(texts), "plan_seconds": plan_seconds, "cut": cut, "share": share, "shallow": int(shallow.sum())}
    told = [found("", common | {f"{name}_texts_per_second": speed for name, speed in speeds.items()})]
    return [*told, *(found(name, {"seconds": spread(of)}) for name, of in seconds.items())]


def deep_first(rows: pa.Table, layers: np.ndarray, work: np.ndarray, share: float) -> tuple[pa.Table, pa.Table]:
    """Placed the other way round: the deepest texts, of this share of the work, and the others."""
    deep = -layers <= choose_cut(-layers, work, share)
    return rows.filter(pa.array(deep)), rows.filter(pa.array(~deep))


def check_same(name: str, expected: pa.Table, answers: pa.Table) -> None:
    """Raise ValueError unless rows have the same labels, but for those that are as likely as others."""
    scores = [table["score"].to_numpy() for table in (expected, answers)]
    apart = np.abs(scores[0] - scores[1]) > CLOSE
    other = np.array(expected["label"].to_pylist()) != np.array(answers["label"].to_pylist())
    if expected["order"].to_pylist() != answers["order"].to_pylist() or (apart | other).mean() > CLOSE:
        raise ValueError(f"{name}: {int((apart | other).sum())} of {len(other)} rows have other answers")
