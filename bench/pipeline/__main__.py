"""Measure the pipeline beside its rivals: throughput, waiting times, memory, its growth, and a matrix of shapes for a GPU.

    python -m bench.pipeline --texts sst2=sst2/test.jsonl --models sst2=runs/sst2 --budget-minutes 60
    python -m bench.pipeline --device cuda --only matrix --budget-minutes 6 --cell-minutes 2
    python -m bench.pipeline --dry-run --output /tmp/dry.jsonl

Each finished cell writes its rows to --output. A run that is started again runs the missing cells. Answers are checked before
anything is timed, and the systems of a cell run in turns.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cell, run_missing
from bench.environment import RESULTS, ROOT, environment
from bench.pipeline.cells.latency import latency
from bench.pipeline.cells.memory import growth, memory
from bench.pipeline.cells.pays import overhead, pays
from bench.pipeline.cells.synthetic import matrix, scaling, skips
from bench.pipeline.cells.throughput import segments, throughput
from bench.pipeline.settings import Settings
from bench.rows import Found
from bench.shapes import shape_of
from geep_triton.policies.policy import OneExitWarning

OUTPUT = RESULTS / "pipeline"
VERSION = 3  # of what cells measure: results of another count as missing
DTYPES = ("float32", "bfloat16", "int8")
AXES = ("length", "classes", "window", "samples")
LENGTHS, TOKENS = (32, 64, 128, 512), (1_024, 4_096, 16_384, 65_536)
SKIPS = {"cpu": ((32, 1_024),), "cuda": ((128, 16_384), (128, 65_536))}  # length, tokens of a batch
SAMPLES = {"cpu": {"minilm": 160, "e5": 160, "base": 48}, "cuda": {"minilm": 8192, "e5": 8192, "base": 8192}}


def cell(kind: Callable[..., list[Found]], name: str, settings: Settings, *arguments: Any, data: str | None = None) -> Cell:
    """A measurement of `bench.pipeline.cells`.

    Args:
        kind: its function; name: what follows the function's name and the device in the cell's.
        settings, arguments: of the function.
        data: whose texts and model it takes; None: random token ids.
    """
    values = asdict(settings) | {"version": VERSION, "threads": torch.get_num_threads()}
    for what in ("models", "texts"):  # not where they lie on this machine
        path = getattr(settings, what).get(data)
        values[what] = path and "/".join(Path(path).parts[-2:])

    def run(_: float) -> list[Found]:
        if settings.compile:
            torch.compiler.reset()  # it stops compiling a function that was compiled for many models
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OneExitWarning)  # that nobody leaves is one of the measurements
            return kind(*arguments, settings)

    return Cell(f"{kind.__name__}.{settings.device}.{name}", values, run)


def all_cells(settings: Settings) -> Iterator[Cell]:
    """Those that these settings allow, the ones that matter most first."""
    on_cpu = settings.device == "cpu"
    dtypes = DTYPES if on_cpu else DTYPES[:2]
    shapes = {data: shape_of(settings.models[data]) if data in settings.models else "minilm" for data in settings.texts}
    for of_trained in (True, False):
        for data in settings.texts:
            shape = shapes[data] if of_trained else "base"
            if of_trained and data not in settings.models and not settings.dry:
                continue  # without trained exits MiniLM shows nothing that the base shape does not
            for dtype in dtypes:
                yield cell(throughput, f"{shape}.{data}.{dtype}", settings, shape, data, dtype, data=data)
    for dtype in dtypes:
        for data in list(settings.texts)[:1]:
            for shape in (shapes[data], "base"):
                for kind in (memory,) * on_cpu + (latency, pays, overhead):
                    yield cell(kind, f"{shape}.{data}.{dtype}", settings, shape, data, dtype, data=data)
            if on_cpu:
                yield cell(growth, f"{shapes[data]}.{data}.{dtype}", settings, shapes[data], data, dtype, data=data)
        for data in settings.texts if on_cpu else ():
            if data in settings.models or settings.dry:
                yield cell(segments, f"{shapes[data]}.{data}.{dtype}", settings, shapes[data], data, dtype, data=data)
    for axis in AXES:
        yield cell(scaling, axis, settings, axis)
    dtype = "float32" if on_cpu else "bfloat16"
    for length, tokens in SKIPS[settings.device]:
        yield cell(skips, f"base.{length}.{tokens}.{dtype}", settings, "base", length, tokens, dtype)
    if on_cpu and not settings.dry:
        return
    for shape in ("base", "large"):
        for length in LENGTHS:
            for tokens in (*TOKENS, length):  # the last: one sample at a time
                yield cell(matrix, f"{shape}.{length}.{tokens}.{dtype}", settings, shape, length, tokens, dtype)


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
    parser.add_argument("--rounds", type=positive, default=20, help="a round of throughput takes texts that none had before")
    parser.add_argument("--threads", type=positive, help="of all systems; default: as many as torch takes")
    parser.add_argument("--cell-minutes", type=positive, help="no further round of a comparison is begun after so long")
    parser.add_argument(
        "--samples",
        type=positive,
        help="texts of a round; default: 160 for MiniLM's width, 48 for the base shape, 8,192 on a GPU",
    )
    parser.add_argument("--token-budget", type=positive, help="default: 1,024 on a CPU, 65,536 on a GPU")
    parser.add_argument("--max-length", type=positive, default=512)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: unless --dry-run")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="no cell is started after so long")
    parser.add_argument("--dry-run", action="store_true", help="every cell with tiny models, few texts and one round")
    parser.add_argument("--list", action="store_true", help="show the cells' names only")
    parser.add_argument("--output", type=Path, help="default: a file of this machine in bench/results/pipeline")
    return parser.parse_args(given)


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {text!r}")
    return int(text)


def settings_of(arguments: argparse.Namespace) -> Settings:
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
    return Settings(
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
    settings = settings_of(arguments)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if settings.place == "cuda" and not torch.cuda.is_available() and not arguments.list:
        raise SystemExit(
            "no GPU here; --dry-run tries the cells in the ways that a CPU has, python -m bench.gpu --dry-run all of a GPU's"
        )
    wanted = [cell for cell in all_cells(settings) if not arguments.only or cell.name.startswith(tuple(arguments.only))]
    if not wanted:
        raise SystemExit(f"--only {' '.join(arguments.only)}: no such cell; --list shows them")
    output = arguments.output or OUTPUT / f"{slug(environment())}.jsonl"
    run_missing("pipeline", wanted, output, arguments.budget_minutes, arguments.list)


def slug(where: dict[str, Any]) -> str:
    """An environment's machine, as a file's name; with a CPU's threads where they are several."""
    threads = f" {where['threads']} threads" if where["gpu"] is None and where["threads"] > 1 else ""
    return re.sub(r"\W+", "_", (where["gpu"] or where["cpu"]) + threads).strip("_").lower()


if __name__ == "__main__":
    main()
