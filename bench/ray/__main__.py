"""Measure Ray on this machine, all nodes on 127.0.0.1.

GEEP_DATA=DATA OMP_NUM_THREADS=1 python -m bench.ray --work WORK --model MODEL

Cells: "nodes": `geep predict` in one process, by two nodes of one core each, and by two nodes of which an actor and then a node
are killed: their outputs must be the same bytes. "placing": two kinds of actors, and texts that are placed by foretold depth,
at random, or wherever an actor is free. A measured cell is not measured again.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

# Before Ray is imported: nothing listens to other machines, and nobody is told of it.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from bench.cells import Cell, run_missing
from bench.environment import RESULTS, ROOT
from bench.files.__main__ import POLICY, prepare_model
from bench.ray.nodes import nodes
from bench.ray.placing import KINDS, placing
from geep_triton.files.rows import read_rows

SUITE = "ray"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", required=True, type=Path, help="folder for inputs, outputs and a model")
    parser.add_argument("--model", type=Path, help="folder of a model with exits and a table, for placing")
    parser.add_argument("--policy", help="of that model; by default as calibrated")
    parser.add_argument("--output", type=Path, default=RESULTS / "ray" / "ray.jsonl")
    parser.add_argument("--shards", type=int, default=12)
    parser.add_argument("--rows", type=int, default=8000, help="of a shard")
    parser.add_argument("--texts", type=int, default=16_000, help="to place")
    parser.add_argument("--batch", type=int, default=1024, help="of texts that are placed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=["nodes", "placing"])
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("OMP_NUM_THREADS must be 1, so that a process, as an actor of one core, has one thread")
    if "placing" in arguments.only and arguments.model is None:
        parser.error("placing needs --model, the folder of a model with exits and a table")
    in_data = "GEEP_DATA" in os.environ
    source = Path(os.environ["GEEP_DATA"], "sst2", "train.jsonl") if in_data else ROOT / "examples/data/train.jsonl"
    rows = [row["text"] for row in read_rows(source)]
    texts = [rows[number % len(rows)] for number in range(arguments.texts)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    told = {"texts": "/".join(source.parts[-2:]), "rounds": arguments.rounds}
    cells = []
    if "nodes" in arguments.only:
        sizes = {"shards": arguments.shards, "rows": arguments.rows}
        model = prepare_model(arguments.work / "model")
        declared = {**told, **sizes, "model": "MiniLM-L6, exits not trained", "policy": POLICY}
        cells.append(Cell("nodes", declared, partial(nodes, arguments.work, model, rows, *sizes.values(), arguments.rounds)))
    if "placing" in arguments.only:
        declared = {
            **told, "model": "/".join(arguments.model.parts[-2:]), "policy": arguments.policy, "count": arguments.texts,
            "batch": arguments.batch, "kinds": dict(KINDS), "seed": 0,
        }  # fmt: skip
        given = (arguments.model, arguments.policy, texts, arguments.batch, arguments.rounds, 0)
        cells.append(Cell("placing", declared, partial(placing, *given)))
    run_missing(SUITE, cells, arguments.output)


if __name__ == "__main__":
    main()
