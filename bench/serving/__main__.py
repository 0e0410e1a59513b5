"""Measure `geep serve` under load, beside Hugging Face's pipeline behind the same server.

GEEP_DATA=DATA OMP_NUM_THREADS=1 python -m bench.serving --work WORK

Each server is a process of its own, all of whose threads share one core; torch runs in one thread. This process sends the load
from another core. A measured cell is not measured again. The first run trains the model, which takes a quarter of an hour.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, run_missing
from bench.data import data_folder
from bench.environment import RESULTS
from bench.rows import Found
from bench.serving.audits import audit, audit_delay, shuffled
from bench.serving.batching import batching
from bench.serving.bench import EXITS, FULL, ONE_AT_A_TIME, PIPELINE, Bench, Cores
from bench.serving.correct import correct
from bench.serving.drain import drain
from bench.serving.memory import HOUR, memory
from bench.serving.model import AGREEMENT, Served, material, train
from bench.serving.overload import overload
from bench.serving.servers import System, ours, rival
from bench.serving.slow import slow
from bench.serving.steady import load
from geep_triton.files.rows import read_rows

SUITE = "serving"
BATCH_SIZE = 16  # of the pipeline: the fastest of 8, 16, 32 and 64, as is sorting by length
TOKENS = (1024, 2048, 4096, 8192)  # one to eight batches of the engine
NAMES = ("load", "correct", "overload", "drain", "slow", "audit", "audit_delay", "batching", "memory")


def systems(made: Served) -> dict[str, System]:
    """Everything that is measured."""
    all_of_them = [
        ours(EXITS, made.exits),
        ours(FULL, made.exits, "--policy", "full"),
        rival(PIPELINE, made.plain, "--batch-size", BATCH_SIZE, "--by-length"),
        rival(ONE_AT_A_TIME, made.plain, "--batch-size", 1, "--max-batch-tokens", 1),
    ]
    return {system.name: system for system in all_of_them}


def cells(bench: Bench, other: list[str], quick: float) -> dict[str, Cell]:
    """All cells by name.

    Args:
        bench: systems and texts.
        other: texts of another domain.
        quick: shortens each cell to about this share.
    """
    times, texts = partial(_shortened, share=quick), bench.texts
    some = (replace(bench, texts=texts[: times(4_000)]),)
    other = other[: times(2_000)]
    shifts = {"news": other, "random words": shuffled(texts[: len(other)], texts)}

    def cell(name: str, run: Callable[..., list[Found]], given: tuple[Any, ...] = (bench,), **sizes: Any) -> Cell:
        declaration: Mapping[str, Any] = {"texts": "sst2/train.jsonl", "model": "MiniLM-L6", "agreement": AGREEMENT, **sizes}
        return Cell(name, declaration, lambda _: run(*given, **sizes))

    made = [
        cell("load", load, some, names=list(bench.systems), rounds=3, seconds=4 * quick),
        cell("correct", correct, names=[EXITS, FULL], requests=times(20_000), clients=64),
        cell("overload", overload, some, limit=16, seconds=15 * quick),
        cell("drain", drain, some, rounds=3, clients=64, seconds=2.0),
        cell("slow", slow, some, seconds=20 * quick),
        cell(
            "audit", partial(audit, shifts=shifts), some, agreements=[0.95, 0.9, 0.8], drawn_texts=times(6_000), rate=0.2,
            usual=times(1_000), runs=200,
        ),
        cell("audit_delay", audit_delay, (), promised=AGREEMENT, truths=[0.97, 0.95, 0.9, 0.8], runs=200),
        cell(
            "batching", batching, some, names=[EXITS], waits=[0, 1, 2, 5], tokens=TOKENS, seconds=3 * quick
        ),
        cell(
            "memory", memory, share=0.3, clients=64, requests_of_mix=times(20_000), seconds=600.0 * quick, hour=HOUR * quick
        ),
    ]  # fmt: skip
    return {one.name: one for one in made}


def _shortened(count: int, share: float) -> int:
    return max(40, round(count * share))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/serving"), help="folder for the models and what is kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving" / "serving.jsonl")
    parser.add_argument("--quick", type=float, default=1.0, help="share of each cell's length, to try it out")
    parser.add_argument("--only", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--again", action="store_true", help="also cells that have a result")
    arguments = parser.parse_args()
    try:
        data = data_folder()
    except ValueError as wrong:
        parser.error(str(wrong))
    if arguments.quick != 1 and arguments.output == parser.get_default("output"):
        parser.error("the results of a trial go elsewhere: give --output beside --quick")
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    given = material(data)
    made = train(arguments.work, given)
    cores = Cores.found()
    os.sched_setaffinity(0, {cores.client})
    bench = Bench(arguments.work, made.exits, systems(made), given.served, cores)
    news = [row["text"] for row in read_rows(data / "ag_news" / "test.jsonl")]
    by_name = cells(bench, news, arguments.quick)
    run_missing(SUITE, [by_name[name] for name in arguments.only], arguments.output, again=arguments.again)


if __name__ == "__main__":
    main()
