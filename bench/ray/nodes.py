"""`geep predict` in one process, on a Ray of two nodes, and there while an actor and a node are killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.files.__main__ import fresh, predict, prepare_shards
from bench.rows import Found, found
from bench.timing import spread

STORE_BYTES = 100 << 20
ACTOR = b"ray::GroupActor.answer"  # how Ray names the process of an actor that is at work
PATIENCE = 600.0


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """A Ray of two nodes of one core on 127.0.0.1, and the second of them."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        cluster.wait_for_nodes()
        yield cluster, second
    finally:
        cluster.shutdown()


def nodes(work: Path, model: Path, texts: list[str], shards: int, rows: int, rounds: int, deadline: float) -> list[Found]:
    """Seconds by turns, and how many outputs are the same bytes."""
    source = prepare_shards(work / "shards", texts, shards, rows)
    seconds: dict[str, list[float]] = {"one process": [], "two nodes": []}
    loading: dict[str, float] = {}
    with two_nodes() as (cluster, _):
        given = {"one process": [], "two nodes": ["--ray", cluster.address]}
        for _ in range(rounds):
            for name, options in given.items():
                fresh(work / name)
                seconds[name].append(predict(model, source, work / name, work / "log", options=options).seconds)
        for name, options in given.items():  # which find that all is done
            loading[name] = predict(model, source, work / name, work / "log", options=options).seconds
    sizes = {"shards": shards, "rows": shards * rows}
    measured = [
        found(
            name,
            {"seconds": spread(of), "loading_seconds": loading[name], "same": same(work, name)},
            **sizes,
        )
        for name, of in seconds.items()
    ]
    spent, killed = with_kills(work, model, source)
    return [*measured, found("killed", {"seconds": spent, "same": same(work, "killed"), **killed}, **sizes)]


def with_kills(work: Path, model: Path, source: Path) -> tuple[float, dict[str, int]]:
    """A run whose actor is killed once a shard is done, and whose second node is taken away once another is."""
    fresh(work / "killed")
    happened = {"actors_killed": 0, "nodes_killed": 0}

    def done() -> int:
        return len(list((work / "killed").glob("*.parquet")))

    with two_nodes() as (cluster, second):

        def kill() -> None:
            wait_for(lambda: done() >= 1 and bool(actors()))
            os.kill(actors()[0], signal.SIGKILL)
            happened["actors_killed"] += 1
            before = done()
            wait_for(lambda: done() > before)
            cluster.remove_node(second)
            happened["nodes_killed"] += 1

        killer = threading.Thread(target=kill)
        killer.start()
        ran = predict(model, source, work / "killed", work / "log", options=["--ray", cluster.address])
        killer.join()
    return ran.seconds, happened


def actors() -> list[int]:
    """The processes of actors that are at work on this machine."""
    lines = {int(path.parent.name): _line(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return sorted(process for process, line in lines.items() if line.startswith(ACTOR))


def _line(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended meanwhile
        return b""


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not there():
        if time.monotonic() > end:
            raise TimeoutError("the run did not come to where it shall be killed")
        time.sleep(0.02)


def same(work: Path, name: str) -> int:
    """How many outputs are, byte by byte, those of one process. ValueError if one is missing."""
    whole = {path.name: path.read_bytes() for path in (work / "one process").glob("*.parquet")}
    other = {path.name: path.read_bytes() for path in (work / name).glob("*.parquet")}
    if whole.keys() != other.keys():
        raise ValueError(f"{name} has other outputs than one process: {sorted(whole.keys() ^ other.keys())}")
    return sum(other[shard] == content for shard, content in whole.items())
