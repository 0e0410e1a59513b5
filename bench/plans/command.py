"""What the scripts of this package are told, and the cells that they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.answers.tasks import SEEDS, Trained
from bench.plans.tasks import BACKBONES, TASKS, trainings


def parser_of(description: str | None, output: Path | None) -> argparse.ArgumentParser:
    """A parser of what all scripts of this package can be told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    return parser


def cells_of(arguments: argparse.Namespace) -> list[Trained]:
    """The cells that were asked for."""
    return list(trainings(arguments.seeds, arguments.tasks, arguments.backbones))
