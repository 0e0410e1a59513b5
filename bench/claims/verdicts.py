"""What the runs of the grid say about each claim, paired over seeds and test samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.claims.grid import Claim, cells
from bench.claims.metrics import Interval, paired_bootstrap
from bench.rows import read, records

Results = dict[tuple[str, str], dict[int, dict[str, Any]]]  # (data set, method) -> seed -> its record


def read_results(folder: Path) -> Results:
    """The results of cells as they are declared now; those of an older declaration count as missing.

    Raises:
        ValueError: results on rows of several sources, which must not be compared.
    """
    found = {one["case"]: one for one in records(read(folder)) if one["system"]}
    results: Results = {}
    sources: set[str] = set()
    for cell in cells(sorted({int(name.split(".")[-1]) for name in found})):
        if (result := found.get(cell.name)) is None:
            continue
        of_the_run = {name: value for name, value in result["declaration"].items() if name in ("source", "limit")}
        if result["declaration"] == cell.declaration() | of_the_run:
            results.setdefault((cell.data_set.name, cell.method.name), {})[cell.seed] = result
            sources.add(of_the_run["source"])
    if len(sources) > 1:
        raise ValueError(
            f"{folder} holds results on rows from {' and '.join(sorted(sources))}: keep them in folders of their own"
        )
    return results


def scores_of(result: dict[str, Any]) -> torch.Tensor:
    """[E, N] scores of single samples, or questions, at each exit."""
    metric = result["declaration"]["data_set"]["metric"]
    return torch.tensor([[float(x) for x in (line.split() if metric == "map" else line)] for line in result["scores"]])


def machine_of(run: dict[str, Any]) -> str:
    """What its seconds depend on."""
    where = run["environment"]
    return f"{where['gpu'] or where['cpu']}, {where['threads']} threads"


def seconds_of(run: dict[str, Any]) -> float:
    """Seconds of training, its difficulties included: on the wall where a GPU worked, else of the CPU's cores."""
    clock = "cpu_seconds" if run["environment"]["gpu"] is None else "wall_seconds"
    return sum(run[f"{what}.{clock}"] for what in ("training", "difficulty"))


@dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim on a data set.

    Attributes:
        early: difference over the early exits, mean over exits.
        exits: difference at each exit.
        seconds: training time of the method, its difficulties included, over that of the baseline, for each seed that both
            trained on one kind of machine.
        seeds: that both have.
        word: "supported", "refuted" or "undecided"; of one seed it says so.
    """

    early: Interval
    exits: tuple[Interval, ...]
    seconds: tuple[float, ...]
    seeds: tuple[int, ...]
    word: str


def judge(claim: Claim, data_set: str, results: Results) -> Verdict | None:
    """Paired over seeds and test samples; None while a side has no result."""
    method, baseline = (results.get((data_set, name), {}) for name in (claim.method, claim.baseline))
    seeds = sorted(set(method) & set(baseline))
    if not seeds:
        return None
    first, second = (torch.stack([scores_of(runs[seed]) for seed in seeds]) for runs in (method, baseline))
    early = paired_bootstrap(first[:, :-1].mean(1), second[:, :-1].mean(1))
    # All exits at once (Bonferroni): one in twenty of many exits would lie outside by chance.
    confidence = 1 - 0.05 / first.shape[1]
    exits = tuple(paired_bootstrap(a, b, confidence) for a, b in zip(first.unbind(1), second.unbind(1), strict=True))
    seconds = tuple(
        seconds_of(method[seed]) / seconds_of(baseline[seed])
        for seed in seeds
        if machine_of(method[seed]) == machine_of(baseline[seed])
    )
    word = _word(claim, early, exits, seconds)
    return Verdict(early, exits, seconds, tuple(seeds), word + " (1 seed)" * (len(seeds) == 1))


def _word(claim: Claim, early: Interval, exits: Sequence[Interval], seconds: Sequence[float]) -> str:
    if claim.reading == "early":
        return "supported" if early.low > 0 else "refuted" if early.high < 0 else "undecided"
    if claim.reading == "time":
        if not seconds:
            return "undecided"
        return "supported" if max(seconds) < 1 else "refuted" if min(seconds) > 1 else "undecided"
    if any(exit_.high < -claim.margin for exit_ in exits):
        return "refuted"
    return "supported" if all(exit_.low > -claim.margin for exit_ in exits) else "undecided"
