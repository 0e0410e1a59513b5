"""Runs the declared cells that have no result yet, one after another.

A run can be killed and started again, and several processes can share the work.
"""

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
    """The budget is spent. What is done is kept, and another run goes on from there."""


@dataclass(frozen=True)
class Cell:
    """A measurement whose rows stand or fall together.

    Attributes:
        name: the case of its rows.
        declaration: all that its result follows from. A result of another declaration counts as missing.
        run: takes a deadline of `time.monotonic()` and returns what was measured, or raises OutOfTime at the deadline. It may
            return the metric "error", which is kept until another run measures the cell again.
    """

    name: str
    declaration: Mapping[str, Any]
    run: Callable[[float], Sequence[Found]]


def file_of(output: Path, name: str) -> Path:
    """The file of a cell's rows: `output`, if that is the name of a file (.jsonl), else a file of its own in that folder."""
    return output if output.suffix == ".jsonl" else output / f"{name}.jsonl"


def as_read(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """The declaration as a file of results has it."""
    return json.loads(json.dumps(declaration))


def has_result(output: Path, name: str, declaration: Mapping[str, Any]) -> bool:
    """Whether there is a result of this very declaration, and no error."""
    wanted = as_read(declaration)
    found = [row for row in read(file_of(output, name)) if row.case == name and row.config.get("declaration", {}) == wanted]
    return bool(found) and all(row.metric != "error" for row in found)


@contextmanager
def locked(name: str, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of this name on this machine, and tell whether this process got it. A killed holder releases it."""
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
    suite: str,
    wanted: Sequence[Cell],
    output: Path,
    minutes: float = float("inf"),
    show_only: bool = False,
    again: bool = False,
) -> None:
    """Run the cells that lack a result of their declaration, each behind a lock that other processes respect.

    Args:
        suite: the suite of their rows.
        wanted: the cells, in order.
        output: see `file_of`.
        minutes: no cell begins after so many minutes.
        show_only: only print the names of the cells.
        again: also run the cells that have a result.

    Raises:
        SystemExit: a cell failed. The others were run.
    """
    start, where, failed = time.monotonic(), environment(), []
    deadline = start + 60 * minutes
    for number, cell in enumerate(wanted, start=1):
        label = f"{number}/{len(wanted)} {cell.name}"
        with locked(f"{output.resolve()} {cell.name}", wait=False) as mine:
            if not mine:
                print(f"{label}: another run is at it", flush=True)
                continue
            done = not again and has_result(output, cell.name, cell.declaration)
            if done or show_only:
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
            rows = rows_of(suite, cell.name, [*measured, Found("", {"took": took}, {})], cell.declaration, where)
            with locked(str(file_of(output, cell.name).resolve())):
                save(file_of(output, cell.name), rows)
            print(f"{label}: {took:.0f} s", flush=True)
    with_results = sum(has_result(output, cell.name, cell.declaration) for cell in wanted)
    print(f"{with_results} of {len(wanted)} cells have results")
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}")


def declared(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of a script without the place of its output: the declaration of what it measures."""
    return without_folders({name: value for name, value in vars(arguments).items() if name != "output"})
