"""Run the cells of the grid that have no result yet.

    GEEP_DATA=../shared/data python -m bench.claims.experiments --seeds 1 --budget-minutes 60

Each finished cell writes one file to --output. A run may be killed at any time and started again. It then continues with the
missing cells, also in the middle of a training. Several runs share the work if they share --output and --cache.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cells import Cell, parse_training, run_missing
from bench.claims.grid import ALL, METHODS, cells
from bench.claims.grid import Cell as GridCell
from bench.claims.training import declared, run_cell
from bench.environment import RESULTS
from bench.rows import Found, found

OUTPUT = RESULTS / "experiments"
CACHE = Path("~/.cache/geep_triton/experiments")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-sets", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--methods", nargs="+", choices=[method.name for method in METHODS])
    return parse_training(parser, OUTPUT, CACHE)


def main() -> None:
    arguments = parse_arguments()
    cache, limit = arguments.cache.expanduser(), arguments.limit_samples

    def cell_of(cell: GridCell) -> Cell:
        def run(deadline: float) -> list[Found]:
            return [found(cell.method.name, run_cell(cell, cache, deadline, limit))]

        return Cell(cell.name, declared(cell, limit), run)

    wanted = list(map(cell_of, cells(arguments.seeds, arguments.data_sets, arguments.methods)))
    run_missing("experiments", wanted, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
