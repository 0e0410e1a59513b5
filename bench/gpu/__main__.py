"""What a GPU does for the library, in one process and at most eight and a half minutes.

    python -m bench.gpu.inputs /tmp/inputs --data DATA          # once, where texts and a model are
    python -m bench.gpu --inputs /tmp/inputs --output bench/results/gpu/h100

Every measurement is a line of results.jsonl at once; started again, it does what is missing or failed. `--dry-run` runs every
line on a CPU, with a stand-in for the device. Where there is no git, GEEP_COMMIT names the commit.
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
from typing import Any

import torch

from bench.environment import environment
from bench.gpu import ceilings, chosen_tests, dense, exits, ops, steps, texts
from bench.gpu.clock import Deadline, Overrun, limited
from bench.gpu.machine import Gpu, StandIn
from bench.gpu.results import Results
from bench.gpu.setting import REHEARSAL, Cells, Setting, Sizes
from geep_triton.policies.policy import OneExitWarning

SECONDS = 500  # 8.3 minutes
LEAST = 1.0  # seconds left, for another cell to begin
SPOILT = 4  # exit code where the device must be begun with anew
SLOWER = 8  # times as long a rehearsal may take: a machine that does other work besides is no finding
# In this order; seconds that each may take, to which those before add what they leave.
PARTS: dict[str, tuple[float, Callable[[Setting], Cells]]] = {
    "ceilings": (15, ceilings.cells),
    "tests": (90, chosen_tests.cells),
    "steps": (40, steps.cells),
    "dense": (120, dense.cells),
    "exits": (110, exits.cells),
    "texts": (80, texts.cells),
    "ops": (SECONDS, ops.cells),
}


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --dry-run runs every line on the CPU")
    if arguments.dry_run:
        torch.set_num_threads(1)  # sizes are tiny: threads would wait for one another
    patience = SLOWER if arguments.dry_run else 1
    deadline, start = Deadline(arguments.seconds * patience), time.perf_counter()
    machine = environment() | {"dry_run": arguments.dry_run}
    output = arguments.output.resolve()
    setting = Setting(
        StandIn() if arguments.dry_run else Gpu(),
        REHEARSAL if arguments.dry_run else Sizes(),
        Results(output, machine),
        output,
        arguments.inputs,
    )
    failed, left_out = [], []
    saved = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OneExitWarning)  # that nobody leaves is one of the measurements
        for part, (seconds, cells) in PARTS.items():
            if arguments.only and part not in arguments.only:
                continue
            seconds *= patience
            began = time.perf_counter()
            again = part in arguments.again
            run_part(setting, part, cells, min(seconds + saved, deadline.left), failed, left_out, again)
            saved = max(0.0, saved + seconds - (time.perf_counter() - began))
    deadline.cancel()
    print(f"{time.perf_counter() - start:.0f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB at most")
    print(f"{len(setting.results.rows)} rows in {setting.results.path}; {len(failed)} failed, {len(left_out)} left out")
    for name in [*(f"failed: {name}" for name in failed), *(f"left out: {name}" for name in left_out)]:
        print(name)
    if failed and arguments.dry_run:
        raise SystemExit(1)


def parse_arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of results.jsonl and a few other files")
    parser.add_argument("--inputs", type=Path, help="folder that `python -m bench.gpu.inputs` made: models and texts")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts")
    parser.add_argument("--again", nargs="+", choices=PARTS, default=(), help="parts whose cells are measured once more")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all of it")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    return parser.parse_args(given)


def run_part(
    setting: Setting,
    part: str,
    cells: Callable[[Setting], Cells],
    seconds: float,
    failed: list[str],
    left_out: list[str],
    again: bool = False,
) -> None:
    """A part's cells, one after another until its time is over; what raises is a row with its error.

    What was measured is left out, unless it is wanted `again`.
    """
    end, results, last = time.perf_counter() + seconds, setting.results, "its preparation"
    made = cells(setting)
    while (left := end - time.perf_counter()) >= LEAST:
        try:
            with limited(left):
                found = next(made, None)
        except (Exception, Overrun) as error:  # the part cannot be prepared; others can
            found = "cells", partial(_raise, error)
        if found is None:
            return
        last, measure = found
        if results.done(part, last) and not again:
            continue
        values, taken = measured(measure, end - time.perf_counter())
        if "error" in values:
            failed.append(f"{part}, {last}: {values['error'][:200]}")
        results.add(part, last, {**values, "took": taken, "peak_bytes": setting.machine.peak_memory()})
        print(f"{part}, {last}: {taken:.1f} s{' FAILED' if 'error' in values else ''}", flush=True)
        if "error" in values:
            _check_device(setting)
        if last == "cells":
            return
    left_out.append(f"{part}, what follows {last}")


def measured(measure: Callable[[], dict[str, Any]], seconds: float) -> tuple[dict[str, Any], float]:
    """A cell's values, or its error, and the seconds that it took."""
    began = time.perf_counter()
    try:
        with limited(seconds):
            values = measure()
    except Overrun:
        values = {"error": f"stopped after {time.perf_counter() - began:.0f} s: the part's time is over"}
    except Exception as error:  # wrong answers, no memory: a finding, and the next cell goes on
        values = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return values, time.perf_counter() - began


def _check_device(setting: Setting) -> None:
    """End the process where an error has spoilt the device for all that follows; started again, it goes on."""
    try:
        setting.machine.synchronize()
    except RuntimeError as error:
        print(f"the device does not answer any more ({error}): start again to go on", flush=True)
        os._exit(SPOILT)


def _raise(error: BaseException) -> None:
    raise error


if __name__ == "__main__":
    main()
