"""Measure each op beside its rivals in the same run, interleaved. Their results are compared first.

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
from bench.ops.cases import MAKERS, found_of, measure
from bench.rows import Found


def measured(op: str, device: torch.device, rounds: int) -> Iterator[Found]:
    """Every size and provider of an op."""
    torch.manual_seed(0)
    for case in MAKERS[op](device):
        if case.op == op:
            yield from found_of(case, measure(case, device, rounds))


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
