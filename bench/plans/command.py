"""What the scripts of this package are told, and the cells that they run."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.answers import command
from bench.answers.tasks import Trained
from bench.plans.tasks import BACKBONES, TASKS


def parser_of(description: str | None, output: Path | None) -> argparse.ArgumentParser:
    """A parser of what all scripts of this package can be told."""
    return command.parser_of(description, output, TASKS, BACKBONES)


def cells_of(arguments: argparse.Namespace) -> list[Trained]:
    """The cells that were asked for."""
    return command.cells_of(arguments, TASKS, BACKBONES)
