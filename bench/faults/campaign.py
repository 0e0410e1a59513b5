"""Runs the cases of a part in a process of their own, so that a crash or a hang is a failure of one case and ends no other.

This is no run of `bench.cells`: a campaign tries new seeds until its time is over, and no earlier result makes a case needless.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geep_triton.checks import shorten

MEMORY = 6 << 30  # bytes that a part's process may grow by: what would blow up is an error of one case
PREPARING = 300.0  # seconds


@dataclass
class Outcome:
    """What came of one case.

    Attributes:
        faults: what was wrong, in words; empty if all was right.
        counts: how often each kind of thing was tried.
    """

    faults: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Part:
    """A kind of case.

    Attributes:
        name: its name for `--only`.
        tries: what one case is, for the page.
        prepare: makes what all cases share, given an empty folder.
        case: takes what was prepared, an empty folder and the seed of the case, and returns what came of it.
        patience: a case that takes more seconds counts as one that hangs.
    """

    name: str
    tries: str
    prepare: Callable[[Path], Any]
    case: Callable[[Any, Path, int], Outcome]
    patience: float = 60.0


def run_part(part: Part, seed: int, seconds: float, cases: int | None = None, until_failure: bool = False) -> dict[str, Any]:
    """Run the cases of the seeds `seed`, `seed + 1`, ... until their time or their number is over.

    Args:
        part: the part whose cases run.
        seed: the seed of the first case.
        seconds: no case begins after so many seconds.
        cases: the largest number of cases; None: as many as there is time for.
        until_failure: whether the first case that fails is the last.

    Returns:
        The number of cases, the first and the last seed, seconds, counts by kind, and the failures with their seeds and words.
    """
    began, tried, counts, failures = time.monotonic(), 0, Counter(), []

    def goes_on() -> bool:
        more = cases is None or tried < cases
        return more and (tried == 0 or time.monotonic() - began < seconds) and not (until_failure and failures)

    while goes_on():
        with tempfile.TemporaryDirectory(prefix="faults.") as folder:
            worker = _Worker(part, Path(folder), seed + tried)
            if (broken := worker.prepared()) is not None:
                raise RuntimeError(f"{part.name}: {broken}")
            while goes_on():
                found, alive = worker.next()
                if found.faults:
                    more = f" (and {len(found.faults) - 1} more)" if len(found.faults) > 1 else ""
                    failures.append({"seed": seed + tried, "fault": f"{found.faults[0]}{more}"})
                counts += found.counts
                tried += 1
                if not alive:
                    break
            worker.end()
    return {
        "cases": tried,
        "first_seed": seed,
        "last_seed": seed + tried - 1,
        "seconds": round(time.monotonic() - began, 1),
        "counts": dict(sorted(counts.items())),
        "failures": failures,
    }


class _Worker:
    """A forked process that runs one case after another and sends what came of each."""

    def __init__(self, part: Part, folder: Path, seed: int) -> None:
        self._part = part
        fork = multiprocessing.get_context("fork")
        self._pipe, there = fork.Pipe()
        self._process = fork.Process(target=_work, args=(part, folder, seed, there, self._pipe))
        self._process.start()
        there.close()

    def prepared(self) -> str | None:
        """Wait until the process is prepared. Returns what is wrong; None: nothing."""
        found = self._answer(PREPARING)
        return found if isinstance(found, str) else None

    def next(self) -> tuple[Outcome, bool]:
        """What came of the next case, and whether the process lives on."""
        self._pipe.send(True)
        found = self._answer(self._part.patience)
        return (Outcome([found]), False) if isinstance(found, str) else (found, True)

    def end(self) -> None:
        """End the process and those that it has started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self._process.kill()
        self._process.join()
        self._pipe.close()

    def _answer(self, patience: float) -> Any:
        """What came through the pipe, or the reason in words why nothing came."""
        if not self._pipe.poll(patience):
            return f"hangs: no end after {patience:g} s"
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join(10)
            return f"crash: the process ended with {self._process.exitcode}"


def _work(part: Part, folder: Path, seed: int, pipe: Any, other_end: Any) -> None:
    other_end.close()
    os.setsid()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
    shared = folder / "shared"
    shared.mkdir()
    try:
        made = part.prepare(shared)
    except BaseException:
        pipe.send(traceback.format_exc())
        return
    pipe.send(None)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        with tempfile.TemporaryDirectory(dir=folder) as own:
            pipe.send(try_case(part, made, Path(own), seed))
        seed += 1


def try_case(part: Part, made: Any, folder: Path, seed: int) -> Outcome:
    """Run a case. An error that it raises is a fault."""
    try:
        return part.case(made, folder, seed)
    except Exception as error:
        frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-3:]]
        return Outcome([f"{type(error).__name__}: {shorten(str(error), 300)} ({' > '.join(frames)})"])
