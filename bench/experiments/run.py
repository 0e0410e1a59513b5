"""Runs the cells of the grid that have no result yet.

    GEEP_DATA=../shared/data python -m bench.experiments.run --seeds 1 --budget-minutes 60

Each finished cell leaves one JSON file in --output. A run may be killed at any time and started again: it goes on with what is
missing, in the middle of a training too. Several runs share the work where they share --cache.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from pathlib import Path

from bench.environment import RESULTS
from bench.experiments.cell import OutOfTime, run_cell, write_json
from bench.experiments.grid import ALL, METHODS, Cell, cells

OUTPUT = RESULTS / "experiments"
CACHE = Path("~/.cache/geep_triton/experiments")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-sets", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--methods", nargs="+", choices=[method.name for method in METHODS])
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--limit-samples", type=int, help="at most as many of each data set, to try the grid out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for checkpoints and trained models")
    arguments = parser.parse_args()
    if arguments.limit_samples is not None and arguments.output == OUTPUT:
        parser.error("the results of a trial go elsewhere: give --output beside --limit-samples")
    return arguments


def is_done(path: Path, cell: Cell, limit: int | None) -> bool:
    """Whether there is a result of this very declaration."""
    if not path.is_file():
        return False
    return json.loads(path.read_text())["declaration"] == cell.declaration() | ({} if limit is None else {"limit": limit})


def main() -> None:
    arguments = parse_arguments()
    deadline = time.monotonic() + 60 * arguments.budget_minutes
    cache = arguments.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)
    wanted = list(cells(arguments.seeds, arguments.data_sets, arguments.methods))
    for number, cell in enumerate(wanted, start=1):
        path = arguments.output / f"{cell.name}.json"
        with (cache / f"{cell.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{cell.name}: another run is at it", flush=True)
                continue
            if is_done(path, cell, arguments.limit_samples):
                continue
            if time.monotonic() > deadline:
                break
            print(f"{cell.name} ({number} of {len(wanted)})", flush=True)
            try:
                result = run_cell(cell, cache, deadline, arguments.limit_samples)
            except OutOfTime:
                break
            write_json(path, result)
            print(f"{cell.name}: area {result['area']:.4f}, trained in {result['training']['wall_seconds']:.0f} s", flush=True)
    missing = sum(not is_done(arguments.output / f"{cell.name}.json", cell, arguments.limit_samples) for cell in wanted)
    print(f"{len(wanted) - missing} of {len(wanted)} cells have results")


if __name__ == "__main__":
    main()
