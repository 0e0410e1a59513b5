"""Runs declared cells that have no result yet, one after another: resumable, safe to kill, several processes at once."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environment import environment, without_folders
from bench.rows import Found, read, rows_of, save


class OutOfTime(Exception):
    """The budget is spent; what is done is kept, and another run goes on from there."""


@dataclass(frozen=True)
class Cell:
    """A measurement whose rows stand or fall together.

    Attributes:
        name: its case.
        declaration: all that its result follows from; a result of another declaration counts as missing.
        run: deadline of `time.monotonic()` -> what was measured; raises OutOfTime where it stops at the deadline.
    """

    name: str
    declaration: Mapping[str, Any]
    run: Callable[[float], Sequence[Found]]


def file_of(output: Path, name: str) -> Path:
    """Where a cell's rows lie: in `output`, if that is a file's name (.jsonl), else in a file of its own in that folder."""
    return output if output.suffix == ".jsonl" else output / f"{name}.jsonl"


def has_result(output: Path, name: str, declaration: Mapping[str, Any]) -> bool:
    """Whether there is a result of this very declaration."""
    path, wanted = file_of(output, name), json.loads(json.dumps(declaration))
    return path.is_file() and any(row.case == name and row.config.get("declaration", {}) == wanted for row in read(path))


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Whether this process alone holds the lock of this name, on this machine; it falls open when its holder is killed."""
    folder = Path(tempfile.gettempdir()) / "geep_triton_bench"
    folder.mkdir(exist_ok=True)
    with (folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def run_missing(
    suite: str, wanted: Sequence[Cell], output: Path, minutes: float = float("inf"), show_only: bool = False
) -> None:
    """Run the cells that lack a result of their declaration, each behind a lock that other processes respect.

    Args:
        suite: of their rows.
        wanted: cells, in order.
        output: see `file_of`.
        minutes: no cell is begun after so many.
        show_only: whether to name them and run none.

    Raises:
        SystemExit: a cell failed: the others were run.
    """
    start, failed = time.monotonic(), []
    deadline = start + 60 * minutes
    for number, cell in enumerate(wanted, start=1):
        label = f"{number}/{len(wanted)} {cell.name}"
        with locked(f"{output.resolve()} {cell.name}", wait=False) as mine:
            if not mine:
                print(f"{label}: another run is at it", flush=True)
                continue
            if (done := has_result(output, cell.name, cell.declaration)) or show_only:
                print(f"{label}{' (done)' if done else ''}", flush=True)
                continue
            began = time.monotonic()
            try:
                if began >= deadline:
                    raise OutOfTime
                measured = cell.run(deadline)
            except OutOfTime:
                spent = (time.monotonic() - start) / 60
                print(f"{len(wanted) - number + 1} cells left after {spent:.1f} minutes; start it again to go on", flush=True)
                break
            except Exception as error:  # answers that are wrong, no memory left: no figure of this cell, but of the others
                print(f"{label} failed: {type(error).__name__}: {error}", flush=True)
                failed.append(cell.name)
                continue
            took = time.monotonic() - began
            rows = rows_of(suite, cell.name, [*measured, Found("", {"took": took}, {})], cell.declaration, environment())
            with locked(str(file_of(output, cell.name).resolve())):
                save(file_of(output, cell.name), rows)
            print(f"{label}: {took:.0f} s", flush=True)
    with_results = sum(has_result(output, cell.name, cell.declaration) for cell in wanted)
    print(f"{with_results} of {len(wanted)} cells have results")
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}")


def declared(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a script was told, but for where to write: the declaration of what it measures."""
    return without_folders({name: value for name, value in vars(arguments).items() if name != "output"})


def add_arguments(parser: argparse.ArgumentParser, output: Path, cache: Path) -> None:
    """What every run of cells that train can be told."""
    parser.add_argument("--budget-minutes", type=float, default=float("inf"))
    parser.add_argument("--limit-samples", type=int, help="at most as many of each data set, to try it out")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--cache", type=Path, default=cache, help="folder for checkpoints and trained models")


def check_trial(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """A trial must not write among the results."""
    if arguments.limit_samples is not None and arguments.output == parser.get_default("output"):
        parser.error("the results of a trial go elsewhere: give --output beside --limit-samples")
