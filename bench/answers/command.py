"""What the scripts of this package are told, and the cells that they run."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.answers.tasks import BACKBONES, SEEDS, TASKS, Backbone, Task, Trained, trainings
from bench.answers.training import RECORD, folder_of
from bench.cells import Cell, run_missing
from bench.rows import Found
from bench.training import declared


def parser_of(
    description: str | None,
    output: Path | None,
    tasks: Sequence[Task] = TASKS,
    backbones: Sequence[Backbone] = BACKBONES,
) -> argparse.ArgumentParser:
    """A parser of what all scripts that use these trained models can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of trained models and records")
    parser.add_argument("--e5", type=Path, required=True, help="folder of the 12-layer model")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in tasks], default=[task.name for task in tasks])
    names = [backbone.name for backbone in backbones]
    parser.add_argument("--backbones", nargs="+", choices=names, default=names)
    parser.add_argument("--limit-samples", type=int, help="at most as many of each task, to try it out")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=output)
    return parser


def cells_of(
    arguments: argparse.Namespace, tasks: Sequence[Task] = TASKS, backbones: Sequence[Backbone] = BACKBONES
) -> list[Trained]:
    """The cells that were asked for."""
    wanted = [task for task in tasks if task.name in arguments.tasks]
    return list(trainings(arguments.seeds, wanted, [one for one in backbones if one.name in arguments.backbones]))


def run_trained(
    suite: str,
    arguments: argparse.Namespace,
    tasks: Container[str],
    run: Callable[[Trained, Path], list[Found]],
    settings: Mapping[str, Any],
    output: Path | None = None,
) -> None:
    """Measure the models of these tasks that are trained and have no result yet.

    Args:
        suite: name of the rows.
        arguments: of the command line.
        tasks: names of tasks.
        run: gets a cell and the folder of its model and record.
        settings: what the results follow from besides.
        output: for the rows; None: that of the arguments.
    """
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples
    folders = {cell: folder_of(cell, arguments.work, limit) for cell in cells_of(arguments) if cell.task.name in tasks}

    def cell_of(cell: Trained) -> Cell:
        return Cell(cell.name, declared(cell, limit) | settings, lambda deadline: run(cell, folders[cell]))

    ready = [cell for cell, folder in folders.items() if (folder / RECORD).is_file()]
    run_missing(suite, list(map(cell_of, ready)), output or arguments.output, arguments.budget_minutes)
