"""The page on the campaign of faults: what was tried, what failed, and which shorter form runs with the tests."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from bench.environment import RESULTS, ROOT
from bench.report.tables import lines, measured_on
from bench.rows import read

INTRODUCTION = """# A campaign of faults

Made by `python -m bench.report` from `bench/results/faults.jsonl`, which `python -m bench.faults --minutes 20`
writes. It runs four kinds of cases for a quarter of the time each, every case in a process that may crash or hang without
ending the rest, and exits 1 where one failed. A case is what its seed makes of it, and runs again alone by
`python -m bench.faults --only streams --seed 123 --cases 1`; what a clock decides (in half of the kills the moment, and the
order of threads) differs from run to run.
"""
MEANING = {
    "streams": (
        "Random texts (single, pairs, odd Unicode, empty, too long, doubled) by random engines: policies of every family, "
        "skip gates, windows, budgets, prefetch, threads that share engine and tokenizer. Each answer, its exit and its "
        "path must be that of the sample alone in float32, within 1e-4 (bfloat16: probabilities within .1), in order, "
        "none lost, and exactly the texts that cannot be answered must be named. Where a decision was closer than 1e-4 "
        "(bfloat16: .1) to being another, the answer must be that of the exit it took. int8 answers are rounded: "
        "there none may be lost, and they must lie nearer to their own texts' than to others'."
    ),
    "kills": (
        "SIGKILL while a model is saved over another (`save_pretrained`, or a calibrated policy in place), while a "
        "training writes checkpoints, and while `geep predict` runs. What loads must be the old whole or the new "
        "whole; a training that goes on must end with the same weights, and predict's outputs be the same bytes, as if "
        "never killed."
    ),
    "mutations": (
        "Damage to one file of a saved model: bytes flipped, cut, zeroed, doubled, put in, a file of another model, "
        "values of JSON files and safetensors headers changed. Loading and predicting must raise a ValueError or OSError "
        "in words, or answer as before. config.json and exit_config.json may also be changed by hand, or the latter taken "
        "away: other settings that a model can have are taken, with a warning."
    ),
    "inputs": (
        "Arguments that are wrong (types, NaN, ranges, shapes, nesting, bytes, generators, maps that do not fit) to "
        "everything that a user calls: a TypeError or ValueError raised on purpose, never one from inside torch, nor "
        "silence; the engine answers as before."
    ),
}
# Tests that run a shorter form: file, what it does, and the constants of the file that say with which seeds and how often.
SHORTER = (
    ("bench/faults/test_faults.py", "this campaign, and with a fault planted in each part, which each must see",
     ("SEED", "CASES")),
    ("tests/killed_saves.py", "a save killed at every change to files, and at some moments", ("KILLS", "START", "STEP")),
    ("tests/test_resumable.py", "a run killed at random moments while it writes its output", ("SEED", "KILLS")),
    ("tests/files/test_kills.py", "a run over files killed at random moments, until it is done",
     ("SEED", "KILLS", "CHANGES", "SECONDS")),
    ("tests/test_table_file.py", "bits of an exit table flipped, in its header and its tensors", ("SEED", "FLIPS")),
    ("tests/test_tokenizing.py", "random texts cut as Hugging Face cuts them; 8 threads that share a tokenizer",
     ("SEED", "PAIRS", "ROUNDS")),
)  # fmt: skip


def page(folder: Path = RESULTS) -> str:
    """The whole page, in Markdown."""
    path = folder / "faults.jsonl"
    if not path.is_file():
        return "\n".join([INTRODUCTION, "Not run yet.", "", *shorter()])
    rows = read(path)
    parts: dict[str, dict[str, Any]] = {}
    for row in rows:
        parts.setdefault(row.case, {})[row.metric] = row.value
    where = rows[-1].environment
    table = [
        (
            name,
            f"{part['cases']:,}",
            f"{part['first_seed']} to {part['last_seed']}",
            f"{part['seconds']:.0f}",
            len(part["failures"]),
        )
        for name, part in parts.items()
    ]
    found = [
        INTRODUCTION,
        f"{measured_on(where)}, transformers {where['transformers']}; {rows[-1].config['minutes']:g} minutes.",
        "",
        lines(["part", "cases", "seeds", "seconds", "failures"], table),
        "",
    ]
    for name, part in parts.items():
        found += [f"## {name.capitalize()}", "", MEANING[name], "", tried(name, part), "", *failures(name, part)]
    return "\n".join([*found, *shorter()])


def tried(name: str, part: dict[str, Any]) -> str:
    """What the cases were, with counts."""
    counts = {metric.removeprefix("counts."): value for metric, value in part.items() if metric.startswith("counts.")}
    if name == "inputs":
        return f"{part['cases']:,} calls of {len(counts)} callables."
    return "; ".join(f"{kind}: {count:,}" for kind, count in counts.items()) + "."


def failures(name: str, part: dict[str, Any]) -> list[str]:
    """A line each."""
    found = [f"- `--only {name} --seed {one['seed']} --cases 1`: {one['fault']}" for one in part["failures"]]
    return [*(["Failures:", "", *found] if found else ["No failures."]), ""]


def shorter() -> list[str]:
    """The table of what the tests run."""
    rows = []
    for file, what, names in SHORTER:
        values = constants(ROOT / file)
        rows.append((f"`{file}`", what, ", ".join(f"{name} = {values[name]!r}" for name in names)))
    return ["## What the tests run of it", "", lines(["file", "what", "seeds and counts"], rows), ""]


def constants(path: Path) -> dict[str, Any]:
    """A module's constants that are literals, read without importing it."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found
