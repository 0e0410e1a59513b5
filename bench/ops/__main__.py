"""Each op beside its rivals in the same run, interleaved, results checked first.

    python -m bench.ops --output bench/results/ops_cpu.jsonl

`bench/ops/test_ops.py` runs the smallest case of each op under pytest-benchmark.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from bench.cells import Cell, run_missing
from bench.ops.cases import MAKERS, measure, rows_of
from bench.rows import Found


def measured(op: str, device: torch.device, rounds: int) -> Iterator[Found]:
    """Every size and provider of an op."""
    torch.manual_seed(0)
    for case in MAKERS[op](device):
        if case.op != op:
            continue
        for row in rows_of(case, measure(case, device, rounds)):
            settings = {name: row.pop(name) for name in ("op", "roof")}
            yield Found(row.pop("provider"), row, {"roof": settings["roof"], **row.pop("config")})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    device, rounds = torch.device(arguments.device), arguments.rounds
    declared = {"rounds": rounds, "device": device.type}
    cells = [Cell(op, declared, partial(lambda op, _: list(measured(op, device, rounds)), op)) for op in MAKERS]
    run_missing("ops", cells, arguments.output)


if __name__ == "__main__":
    main()
