"""A campaign of random streams, kills, damaged files and wrong arguments, all of which must end well.

python -m bench.faults --minutes 20                          # all parts, into bench/results/faults.jsonl; 1 where one failed
python -m bench.faults --only streams --seed 123 --cases 1   # one case again, alone, and no file
python -m bench.faults --planted --minutes 2                 # a fault is planted in each part: all must see theirs, else 1

The seed decides what a case is, except for what a clock decides: the moment of half of the kills, and the order of threads.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the parts' processes are forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from transformers.utils import logging as transformers_logging

from bench.environment import RESULTS, environment, without_folders
from bench.faults import inputs, kills, mutations, streams
from bench.faults.campaign import Part, run_part
from bench.faults.planted import PLANTS
from bench.rows import found, rows_of, save

PARTS: dict[str, Part] = {part.name: part for part in (streams.PART, kills.PART, mutations.PART, inputs.PART)}


def cases_of(text: str) -> tuple[str | None, int]:
    """A value of `--cases`: a number for all parts, or PART=NUMBER."""
    name, _, count = text.rpartition("=")
    if (name and name not in PARTS) or not count.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number, or one of {', '.join(PARTS)}, = and a number, got {text!r}")
    return name or None, int(count)


def run(
    names: list[str], seed: int, minutes: float, cases: Mapping[str | None, int], until_failure: bool = False
) -> dict[str, Any]:
    """Run the parts one after another. The parts that are left share the time that is left.

    `cases` has the largest number of cases of a part, and under None that of the parts that it does not name.
    """
    end, parts = time.monotonic() + 60 * minutes, {}
    for done, name in enumerate(names):
        seconds = (end - time.monotonic()) / (len(names) - done)
        parts[name] = {"tries": PARTS[name].tries} | run_part(
            PARTS[name], seed, seconds, cases.get(name, cases.get(None)), until_failure
        )
        print(f"{name}: {parts[name]['cases']} cases, {len(parts[name]['failures'])} failures", flush=True)
        for failure in parts[name]["failures"]:
            again = f"python -m bench.faults --only {name} --seed {failure['seed']} --cases 1"
            print(f"  seed {failure['seed']}: {failure['fault']}\n    again: {again}", flush=True)
    return parts


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for all parts together")
    parser.add_argument("--seed", type=int, default=0, help="of each part's first case; the next has the next seed")
    parser.add_argument(
        "--cases", type=cases_of, nargs="+", default=[], metavar="[PART=]N",
        help="most cases of each part, or of one (default: as many as there is time for)",
    )  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts")
    parser.add_argument("--planted", action="store_true", help="plant a fault in each part, which ends once it has seen it")
    parser.add_argument("--output", type=Path, help="for the result (default: bench/results/faults.jsonl, if all ran)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)  # a fork of a process with more would hang
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    quiet = logging.getLogger("geep_triton")
    quiet.addHandler(logging.NullHandler())
    quiet.propagate = False
    warnings.simplefilter("ignore")
    for name in arguments.only if arguments.planted else ():
        PLANTS[name]()
    began = time.monotonic()
    parts = run(arguments.only, arguments.seed, arguments.minutes, dict(arguments.cases), arguments.planted)
    whole = arguments.only == list(PARTS) and not arguments.cases and not arguments.planted
    output = arguments.output or (RESULTS / "faults.jsonl" if whole else None)
    if output is not None:
        minutes = round((time.monotonic() - began) / 60, 1)
        for name, part in without_folders(parts).items():
            save(output, rows_of("faults", name, [found("", part, seed=arguments.seed, minutes=minutes)], {}, environment()))
    failed = [bool(part["failures"]) for part in parts.values()]
    sys.exit(not all(failed) if arguments.planted else any(failed))


if __name__ == "__main__":
    main()
