"""Measure the candidates for `geep_triton/kernels/configs.py` on this GPU and print the rows that win.

python -m bench.tune --output bench/results/gpu/tune.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tqdm import tqdm

from bench.environment import environment
from bench.ops import OURS, Case, all_cases, measure

BLOCKS = {
    "insert_add": (128, 256, 512),
    "lookup": (128, 256, 512),
    "predict_exits": (32, 64, 128),
    "score_exits": (512, 1024, 4096),
    "skip_gate": (512, 1024),
    "partition": (512, 1024),
    "move_rows": (256, 512, 1024),
}
WARPS = (1, 2, 4, 8)


def candidates(case: Case, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """A row for each configuration of one case, fastest first. A configuration that spills shows in its time."""
    from geep_triton.kernels import configs

    ours = Case(case.op, case.config, case.items, case.bytes_moved, {OURS: case.providers[OURS]})
    expected = ours.providers[OURS]()
    rows = []
    for block, warps in itertools.product(BLOCKS[case.op], WARPS):
        table = {**configs.TABLE, case.op: {"default": ((float("inf"), configs.Config(block, warps)),)}}
        with mock.patch.object(configs, "TABLE", table):
            if not case.same_as_ours(ours.providers[OURS](), expected):
                raise ValueError(f"{case.op} {case.config}: block {block}, {warps} warps give another result")
            seconds = statistics.median(measure(ours, device, rounds)[OURS])
        rows.append({"op": case.op, "config": case.config, "block": block, "warps": warps, "seconds": seconds})
    return sorted(rows, key=lambda row: row["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here, nothing to tune: on a CPU the ops run in PyTorch")
        return
    device, rows = torch.device("cuda"), []
    for case in tqdm(all_cases(device), desc="tune", unit="case"):
        found = candidates(case, device, arguments.rounds)
        rows += found
        print(f"{case.op} {case.config}: Config({found[0]['block']}, {found[0]['warps']}), {found[0]['seconds'] * 1e6:.1f} us")
        arguments.output.write_text(json.dumps({"environment": environment(), "candidates": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
