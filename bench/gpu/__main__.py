"""Measures what a GPU does for the library, in one process of at most eight and a half minutes.

    python -m bench.gpu.inputs /tmp/inputs --data DATA          # once, on a machine that has texts and a model
    python -m bench.gpu --inputs /tmp/inputs --output bench/results/gpu/h100
    python -m bench.gpu --inputs /tmp/tuned --output bench/results/gpu/h100 --only shrinkage   # a folder of `bench.gpu.tuned`

Each measurement is on the disk as soon as it ends. A run that is started again does what is missing or has failed. `--dry-run`
runs every line on a CPU that stands in for the device. GEEP_COMMIT names the commit if there is no git.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from bench.cells import Cell, OutOfTime, run_missing
from bench.gpu import ceilings, chosen_tests, dense, exits, ops, shrinkage, steps, texts
from bench.gpu.clock import Deadline, Overrun, limited
from bench.gpu.machine import Gpu, StandIn
from bench.gpu.setting import REHEARSAL, Cells, Setting, Sizes
from bench.rows import Found, found, read
from geep_triton.policies.policy import OneExitWarning

SECONDS = 500  # 8.3 minutes
LEAST = 1.0  # seconds: with less time no other cell begins
SPOILT = 4  # the exit code after an error that only a new process gets rid of
SLOWER = 8  # a rehearsal may take this many times as long, since its machine may do other work at the same time
# The parts in their order, and the seconds that each may take. A part also gets the time that earlier parts did not use.
PARTS: dict[str, tuple[float, Callable[[Setting], Cells]]] = {
    "ceilings": (15, ceilings.cells),
    "tests": (80, chosen_tests.cells),
    "steps": (40, steps.cells),
    "dense": (110, dense.cells),
    "exits": (100, exits.cells),
    "shrinkage": (60, shrinkage.cells),
    "texts": (70, texts.cells),
    "ops": (SECONDS, ops.cells),
}


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run runs every line on the CPU")
    if arguments.dry_run:
        torch.set_num_threads(1)  # sizes are tiny: threads would wait for one another
    patience = SLOWER if arguments.dry_run else 1
    deadline, saved = Deadline(arguments.seconds * patience), 0.0
    machine, sizes = (StandIn(), REHEARSAL) if arguments.dry_run else (Gpu(), Sizes())
    setting = Setting(machine, sizes, arguments.output.resolve(), arguments.inputs)
    check_card(setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneExitWarning)  # that nobody leaves is one of the measurements
        for part, (seconds, cells) in PARTS.items():
            began, seconds = time.monotonic(), seconds * patience
            if arguments.only and part not in arguments.only:
                saved += seconds
                continue
            run_part(setting, part, cells, min(seconds + saved, deadline.left), part in arguments.again)
            saved = max(0.0, saved + seconds - (time.monotonic() - began))
    deadline.cancel()
    failed = [row for row in read(setting.results) if row.metric == "error"]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{setting.results}: {len(failed)} cells failed; {memory:.2f} GB of the host's memory at most")
    for row in failed:
        print(f"failed: {row.case}: {row.value[:200]}")
    if failed and arguments.dry_run:
        raise SystemExit(1)


def parse_arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of results.jsonl and tests.xml")
    parser.add_argument(
        "--inputs", type=Path, help="folder that `python -m bench.gpu.inputs` or `.tuned` made: models and texts"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts")
    parser.add_argument("--again", nargs="+", choices=PARTS, default=(), help="parts whose cells are measured once more")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    return parser.parse_args(given)


def check_card(setting: Setting) -> None:
    """End the program if the results are of another card, since new ones would replace them."""
    cards = {row.config["declaration"]["gpu"] for row in read(setting.results)} - {setting.machine.name}
    if cards:
        raise SystemExit(f"{setting.results} is of {cards.pop()}, and this is {setting.machine.name}: give another --output")


def run_part(setting: Setting, part: str, cells: Callable[[Setting], Cells], seconds: float, again: bool = False) -> None:
    """Run the cells of a part that lack a result, one after another, until its time is over."""
    if seconds < LEAST:
        print(f"{part}: no time left", flush=True)
        return
    end, wanted = time.monotonic() + seconds, []
    try:
        with limited(seconds):
            wanted += [cell(setting, f"{part}, {name}", measure) for name, measure in cells(setting)]
    except (Exception, Overrun) as error:  # this part cannot be prepared, but others can
        wanted.append(cell(setting, f"{part}, cells", partial(_raise, error)))
    run_missing("gpu", wanted, setting.results, (end - time.monotonic()) / 60, again=again)


def cell(setting: Setting, name: str, measure: Callable[[], list[Found]]) -> Cell:
    """A cell that is stopped at the deadline. If it fails, its result is the metric "error"."""

    def run(deadline: float) -> list[Found]:
        began = time.monotonic()
        if deadline - began < LEAST:
            raise OutOfTime
        try:
            with limited(deadline - began):
                return [*measure(), found("", {"peak_bytes": setting.machine.peak_memory()})]
        except Overrun:
            error = f"stopped after {time.monotonic() - began:.0f} s: the part's time is over"
        except Exception as raised:  # wrong answers, no memory: a finding, and the next cell goes on
            error = f"{type(raised).__name__}: {raised}"[:2000]
        print(f"{name} FAILED: {error[:200]}", flush=True)
        failed = [found("", {"error": error})]
        setting.keep(name, failed)
        _check_device(setting)
        return failed

    return Cell(name, setting.declaration, run)


def _check_device(setting: Setting) -> None:
    """End the process if an error has spoilt the device for all that follows. Another run goes on from there."""
    try:
        setting.machine.synchronize()
    except RuntimeError as error:
        print(f"the device does not answer any more ({error}): start again to go on", flush=True)
        os._exit(SPOILT)


def _raise(error: BaseException) -> None:
    raise error


if __name__ == "__main__":
    main()
