"""Runs declared cells that have no result yet: resumable, safe to kill, several processes at once."""

from __future__ import annotations

import argparse
import fcntl
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bench.experiments.cell import OutOfTime, write_json


class Declared(Protocol):
    """A cell, as the driver sees it."""

    @property
    def name(self) -> str:
        """Of its file."""


def add_arguments(parser: argparse.ArgumentParser, output: Path, cache: Path) -> None:
    """What every run of cells can be told."""
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--limit-samples", type=int, help="at most as many of each data set, to try it out")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--cache", type=Path, default=cache, help="folder for checkpoints and trained models")


def check_trial(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """A trial must not write among the results."""
    if arguments.limit_samples is not None and arguments.output == parser.get_default("output"):
        parser.error("the results of a trial go elsewhere: give --output beside --limit-samples")


def has_result(path: Path, declaration: dict[str, Any]) -> bool:
    """Whether there is a result of this very declaration."""
    return path.is_file() and json.loads(path.read_text())["declaration"] == declaration


def run_missing(
    wanted: Sequence[Declared],
    arguments: argparse.Namespace,
    declaration: Callable[[Declared], dict[str, Any]],
    run: Callable[[Declared, Path, float], dict[str, Any]],
) -> None:
    """Run the cells that lack a result of their declaration, each behind a lock in the cache that other processes respect.

    Args:
        wanted: cells, in order.
        arguments: of `add_arguments`.
        declaration: all that a cell's result follows from; its file holds it.
        run: cell, cache and deadline of `time.monotonic()` -> what its file holds; raises OutOfTime at the deadline.
    """
    deadline = time.monotonic() + 60 * arguments.budget_minutes
    cache = arguments.cache.expanduser()
    cache.mkdir(parents=True, exist_ok=True)

    def is_done(cell: Declared) -> bool:
        return has_result(arguments.output / f"{cell.name}.json", declaration(cell))

    for number, cell in enumerate(wanted, start=1):
        with (cache / f"{cell.name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{cell.name}: another run is at it", flush=True)
                continue
            if is_done(cell):
                continue
            if time.monotonic() > deadline:
                break
            print(f"{cell.name} ({number} of {len(wanted)})", flush=True)
            try:
                result = run(cell, cache, deadline)
            except OutOfTime:
                break
            write_json(arguments.output / f"{cell.name}.json", result)
    missing = sum(not is_done(cell) for cell in wanted)
    print(f"{len(wanted) - missing} of {len(wanted)} cells have results")
