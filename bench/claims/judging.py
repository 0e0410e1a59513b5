"""What the experiments say about the claims, and what they could have said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims.design import (
    CONFIDENCE,
    INFORMED,
    LEAST_SEEDS,
    LEAST_SETS,
    POWER,
    RELEVANT,
    Claim,
    cells,
)
from bench.claims.metrics import Interval
from bench.claims.pooling import Pooled, pooled, power
from bench.claims.records import DIGITS
from bench.rows import read, records

Run = dict[str, Any]  # metrics of a trained cell
Runs = dict[tuple[str, str], dict[int, Run]]  # (data set, arm) -> seed -> its run


def read_runs(folder: Path) -> Runs:
    """The trained cells as they are declared now. Those of an older declaration count as missing."""
    found = {one["case"]: one for one in records(read(folder)) if one["system"] == "training"}
    runs: Runs = {}
    for cell in cells():
        run = found.get(cell.name)
        if run is not None and run["declaration"] == cell.as_read() and "by_exit" in run:
            runs.setdefault((cell.data_set.name, cell.arm.name), {})[cell.seed] = run
    return runs


def early(run: Run) -> np.ndarray:
    """[N], the mean over the early exits of what a text (of a ranking: a question) scores."""
    if run["metric"] == "map":
        return np.array([float(word) for word in run["early"].split()])
    return np.array([DIGITS.index(digit) for digit in run["early"]]) / (len(run["by_exit"]) - 1)


def shared(*runs: Mapping[int, Any]) -> list[int]:
    """The seeds that all have."""
    return sorted(set(runs[0]).intersection(*runs[1:]))


def difference(method: Mapping[int, Run], baseline: Mapping[int, Run]) -> np.ndarray | None:
    """[R, N] of the R seeds that both have, early exits of the method less those of the baseline; None without any."""
    seeds = shared(method, baseline)
    return np.stack([early(method[seed]) - early(baseline[seed]) for seed in seeds]) if seeds else None


@dataclass(frozen=True)
class Verdict:
    """What is found on a claim.

    Attributes:
        seeds: data set that counts -> how many seeds both arms have. Data sets without any are missing.
        uninformed: data sets left out, since the full model is hardly better there than the commonest class.
        pooled: over the data sets that count, in their order; None where there is none.
        power: with what probability the test would say "supported" where the methods do not differ on any data set (of a claim
            without a margin: where the method is better by `RELEVANT` on each).
        word: "supported", "refuted", "undecided", "too few ..." of what is missing for these, or "no data".
    """

    seeds: dict[str, int]
    uninformed: tuple[str, ...]
    pooled: Pooled | None
    power: float
    word: str


def judge(claim: Claim, runs: Runs, commonest: Mapping[str, float]) -> Verdict:
    """Judge a claim on early exits.

    Args:
        claim: to judge.
        runs: the trained cells.
        commonest: data set -> what the commonest class scores.
    """
    seeds, uninformed, differences = {}, [], []
    for name in claim.data_sets:
        method, baseline = (runs.get((name, arm), {}) for arm in (claim.method, claim.baseline))
        found = difference(method, baseline)
        if found is None or name not in commonest:
            continue
        full = np.mean([baseline[seed]["by_exit"][-1] for seed in shared(method, baseline)])
        if not full >= commonest[name] + INFORMED:  # NaN neither
            uninformed.append(name)
            continue
        seeds[name] = len(found)
        differences.append(found)
    return judged(claim.margin, seeds, differences, tuple(uninformed))


def judged(
    margin: float, seeds: dict[str, int], differences: Sequence[np.ndarray], uninformed: tuple[str, ...] = ()
) -> Verdict:
    """The verdict on differences [R, N] of some data sets.

    Args:
        margin: the pooled difference must be above minus this.
        seeds, uninformed: see `Verdict`.
        differences: of each data set.
    """
    if not differences:
        return Verdict(seeds, uninformed, None, 0.0, "no data")
    found = pooled(differences, CONFIDENCE)
    could = power(found.errors, margin, CONFIDENCE, difference=0.0 if margin else RELEVANT)
    lacking = {
        "data sets": len(differences) < LEAST_SETS,
        "seeds": min(map(len, differences)) < LEAST_SEEDS,
        "rows (power)": could < POWER,
    }
    few = ", ".join(name for name, lacks in lacking.items() if lacks)
    return Verdict(seeds, uninformed, found, could, f"too few {few}" if few else word(found.of_all, margin))


def word(difference: Interval, margin: float) -> str:
    """What bounds of a difference say."""
    if difference.low > -margin:
        return "supported"
    return "refuted" if difference.high < -margin else "undecided"
