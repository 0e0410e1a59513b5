"""The pipeline beside every rival, cell by cell: throughput, waiting times, memory, growth, and the matrix of shapes for a GPU.

    python -m bench.pipeline --texts sst2=sst2/test.jsonl --models sst2=runs/sst2 --budget-minutes 60
    python -m bench.pipeline --device cuda --only matrix --budget-minutes 6 --cell-minutes 2
    python -m bench.pipeline --dry-run --output /tmp/dry

Each finished cell leaves one JSON file in --output; a run that is started again does what is missing. Answers are checked
before anything is timed; systems of a cell run in turns.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import pipeline_cells as cells
from bench.environment import RESULTS, ROOT, environment
from bench.experiments.cell import write_json
from geep_triton.engine.policies import OneExitWarning

OUTPUT = RESULTS / "pipeline"
VERSION = 2  # of what cells measure: results of another count as missing
DTYPES = ("float32", "bfloat16", "int8")
AXES = ("length", "classes", "window", "samples")
LENGTHS, TOKENS = (32, 64, 128, 512), (1_024, 4_096, 16_384, 65_536)
SKIPS = {"cpu": ((32, 1_024),), "cuda": ((128, 16_384), (128, 65_536))}  # length, tokens of a batch
SAMPLES = {"cpu": {"minilm": 256, "base": 48}, "cuda": {"minilm": 8192, "base": 8192}}


@dataclass(frozen=True)
class Cell:
    """One result file.

    Attributes:
        name: of the file.
        run: the measurement.
        data: whose texts and model it takes; None: random token ids.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    data: str | None = None

    def declaration(self, settings: cells.Settings) -> dict[str, Any]:
        """All that its result follows from; a result of another declaration counts as missing."""
        values = asdict(settings) | {"version": VERSION, "threads": torch.get_num_threads()}
        for name in ("models", "texts"):  # not where they lie on this machine
            path = getattr(settings, name).get(self.data)
            values[name] = path and "/".join(Path(path).parts[-2:])
        return values


def all_cells(settings: cells.Settings) -> Iterator[Cell]:
    """Those that these settings allow, the ones that matter most first."""
    kind = settings.device
    for shape in ("minilm", "base"):
        for data in settings.texts:
            if shape == "minilm" and data not in settings.models and not settings.dry:
                continue  # without trained exits MiniLM shows nothing that the base shape does not
            for dtype in DTYPES if kind == "cpu" else DTYPES[:2]:
                arguments = (shape, data, dtype, settings)
                yield Cell(f"throughput.{kind}.{shape}.{data}.{dtype}", partial(cells.throughput, *arguments), data)
    for dtype in DTYPES if kind == "cpu" else DTYPES[:2]:
        for shape in ("minilm", "base"):
            for data in list(settings.texts)[:1]:
                arguments = (shape, data, dtype, settings)
                if kind == "cpu":
                    yield Cell(f"memory.{kind}.{shape}.{data}.{dtype}", partial(cells.memory, *arguments), data)
                yield Cell(f"latency.{kind}.{shape}.{data}.{dtype}", partial(cells.latency, *arguments), data)
                yield Cell(f"pays.{kind}.{shape}.{data}.{dtype}", partial(cells.pays, *arguments), data)
                yield Cell(f"overhead.{kind}.{shape}.{data}.{dtype}", partial(cells.overhead, *arguments), data)
    for axis in AXES:
        yield Cell(f"scaling.{kind}.{axis}", partial(cells.scaling, axis, settings))
    dtype = "float32" if kind == "cpu" else "bfloat16"
    for length, tokens in SKIPS[kind]:
        name = f"skips.{kind}.base.{length}.{tokens}.{dtype}"
        yield Cell(name, partial(cells.skips, "base", length, tokens, dtype, settings))
    if kind == "cpu" and not settings.dry:
        return
    for shape in ("base", "large"):
        for length in LENGTHS:
            for tokens in (*TOKENS, length):  # the last: one sample at a time
                name = f"matrix.{kind}.{shape}.{length}.{tokens}.{dtype}"
                yield Cell(name, partial(cells.matrix, shape, length, tokens, dtype, settings))


def named(pairs: list[str], what: str) -> dict[str, str]:
    """ "name=path" -> {name: path}. ValueError where one is not of this form."""
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"{what} must be NAME=PATH, got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def parse_arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", nargs="+", default=[], metavar="NAME=FILE", help="JSON lines of a data set")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=FOLDER", help="trained on it, with exits")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", nargs="+", default=[], metavar="PREFIX", help="of the cells' names")
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--cell-minutes", type=positive, help="no further round of a comparison is begun after so long")
    parser.add_argument(
        "--samples", type=positive, help="texts of a cell; default: 256 for MiniLM and 48 for the base shape, 8,192 on a GPU"
    )
    parser.add_argument("--token-budget", type=positive, help="default: 1,024 on a CPU, 65,536 on a GPU")
    parser.add_argument("--max-length", type=positive, default=512)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: unless --dry-run")
    parser.add_argument("--budget-minutes", type=float, help="no cell is started after so long")
    parser.add_argument("--dry-run", action="store_true", help="every cell with tiny models, few texts and one round")
    parser.add_argument("--list", action="store_true", help="show the cells' names only")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args(given)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def settings_of(arguments: argparse.Namespace) -> cells.Settings:
    dry = arguments.dry_run
    texts = named(arguments.texts, "--texts") or {"reviews": str(ROOT / "examples" / "data" / "test.jsonl")}
    models = named(arguments.models, "--models")
    for name, folder in models.items():
        if name not in texts:
            raise ValueError(f"--models {name}: there are no --texts of that name, only {', '.join(texts)}")
        if not Path(folder).is_dir():
            raise ValueError(f"--models {name}: there is no folder {folder}")
    samples = SAMPLES[arguments.device]
    if dry or arguments.samples:
        samples = dict.fromkeys(samples, arguments.samples or 6)
    return cells.Settings(
        device=arguments.device,
        models={} if dry else models,
        texts=texts,
        rounds=1 if dry else arguments.rounds,
        seconds=None if arguments.cell_minutes is None else 60 * arguments.cell_minutes,
        samples=samples,
        token_budget=arguments.token_budget or (1_024 if arguments.device == "cpu" else 65_536),
        max_length=64 if dry else arguments.max_length,
        compile=not dry if arguments.compile is None else arguments.compile,
        dry=dry,
    )


def main(given: list[str] | None = None) -> None:
    arguments = parse_arguments(given)
    settings, start = settings_of(arguments), time.perf_counter()
    if settings.place == "cuda" and not torch.cuda.is_available() and not arguments.list:
        raise SystemExit(
            "no GPU here; --dry-run tries the cells in the ways that a CPU has, python -m bench.gpu --dry-run all of a GPU's"
        )
    wanted = [cell for cell in all_cells(settings) if not arguments.only or cell.name.startswith(tuple(arguments.only))]
    if not wanted:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no such cell; --list shows them")
    failed: list[str] = []
    for number, cell in enumerate(wanted, start=1):
        path, declaration = arguments.output / f"{cell.name}.json", cell.declaration(settings)
        done = path.is_file() and json.loads(path.read_text())["declaration"] == declaration
        if arguments.list or done:
            print(f"{number}/{len(wanted)} {cell.name}{' (done)' if done else ''}", flush=True)
            continue
        minutes = (time.perf_counter() - start) / 60
        if arguments.budget_minutes is not None and minutes >= arguments.budget_minutes:
            print(f"{len(wanted) - number + 1} cells left after {minutes:.1f} minutes; start it again to go on", flush=True)
            break
        if settings.compile:
            torch.compiler.reset()  # it stops compiling a function that was compiled for many models
        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", OneExitWarning)  # that nobody leaves is one of the measurements
                result = cell.run()
        except Exception as error:  # answers that are wrong, no memory left: no figure of this cell, but of the others
            print(f"{number}/{len(wanted)} {cell.name} failed: {type(error).__name__}: {error}", flush=True)
            failed.append(cell.name)
            continue
        taken = time.perf_counter() - began
        write_json(path, {"cell": cell.name, "environment": environment(), "declaration": declaration, **result, "took": taken})
        print(f"{number}/{len(wanted)} {cell.name}: {taken:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
