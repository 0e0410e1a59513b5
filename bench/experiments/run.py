"""Runs the cells of the grid that have no result yet.

    GEEP_DATA=../shared/data python -m bench.experiments.run --seeds 1 --budget-minutes 60

Each finished cell leaves one JSON file in --output. A run may be killed at any time and started again: it goes on with what is
missing, in the middle of a training too. Several runs share the work where they share --cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.environment import RESULTS
from bench.experiments.cell import declared, run_cell
from bench.experiments.driver import add_arguments, check_trial, run_missing
from bench.experiments.grid import ALL, METHODS, Cell, cells

OUTPUT = RESULTS / "experiments"
CACHE = Path("~/.cache/geep_triton/experiments")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-sets", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--methods", nargs="+", choices=[method.name for method in METHODS])
    add_arguments(parser, OUTPUT, CACHE)
    arguments = parser.parse_args()
    check_trial(parser, arguments)
    return arguments


def main() -> None:
    arguments = parse_arguments()
    limit = arguments.limit_samples

    def run(cell: Cell, cache: Path, deadline: float) -> dict[str, Any]:
        result = run_cell(cell, cache, deadline, limit)
        print(f"{cell.name}: area {result['area']:.4f}, trained in {result['training']['wall_seconds']:.0f} s", flush=True)
        return result

    wanted = list(cells(arguments.seeds, arguments.data_sets, arguments.methods))
    run_missing(wanted, arguments, lambda cell: declared(cell, limit), run)


if __name__ == "__main__":
    main()
