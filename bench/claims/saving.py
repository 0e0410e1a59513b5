"""What the costs at equal FLOPs say about skipping (B) and about the speed-up by thresholds (D)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import arms
from bench.claims.costs import FULL
from bench.claims.design import (
    DROP,
    ESSENTIAL,
    HARDLY,
    INFORMED,
    LOST_AT_TWICE,
    LOST_ON_MOST,
    SEEDS_OF_FIVE,
    A,
    B,
    D,
)
from bench.claims.judging import Verdict, judged
from bench.rows import read, records

Systems = dict[str, dict[str, Any]]  # name -> metrics
Costs = dict[tuple[str, str], dict[int, Systems]]  # (data set, arm whose last exit is full) -> seed -> its systems


def read_costs(folder: Path) -> Costs:
    """The files that `bench.claims.costs` wrote, but for that of the data sets."""
    found: Costs = {}
    for one in records(read(folder)):
        if one["case"] == "data_sets" or not one["system"]:
            continue
        name, full, seed = one["case"].split(".")
        found.setdefault((name, full), {}).setdefault(int(seed), {})[one["system"]] = one
    return found


def read_data_sets(folder: Path) -> dict[str, dict[str, Any]]:
    """Data set -> its rows and what the commonest class scores."""
    return {one["system"]: one for one in records(read(folder)) if one["case"] == "data_sets" and one["system"]}


def chosen_gates(costs: Costs, data_set: str) -> str | None:
    """The SmartBERT that is best on the tuning rows of the first seed at 2 times fewer FLOPs; None where none is there."""
    first = costs.get((data_set, arms.EXITS.name), {}).get(1, {})
    tuned = {arm.name: first[arm.name]["tune.at_2"] for arm in arms.SKIPPING if arm.name in first}
    return max(tuned, key=lambda name: tuned[name]) if tuned else None


@dataclass(frozen=True)
class Skipping:
    """What B found on a data set: the chosen SmartBERT beside exits without gates.

    Attributes:
        data_set: its name.
        arm: the chosen one.
        seeds: that have both.
        informed: whether the full model is clearly better than the commonest class.
    """

    data_set: str
    arm: str
    seeds: Mapping[int, Systems]
    informed: bool

    def right(self, system: str, reduction: float) -> np.ndarray:
        """[R, N], the right answers of a system at a reduction of the FLOPs."""
        name = "right" if system == FULL else f"test.right_at_{reduction:g}"
        return np.array([[int(digit) for digit in systems[system][name]] for systems in self.seeds.values()], dtype=float)

    def mean(self, system: str, metric: str) -> float:
        """Of the seeds."""
        return statistics.mean(systems[system][metric] for systems in self.seeds.values())


def skippings(costs: Costs, data_sets: Mapping[str, Mapping[str, Any]]) -> list[Skipping]:
    """Of each data set of B that has both models."""
    found = []
    for data_set in B.data_sets:
        arm = chosen_gates(costs, data_set.name)
        if arm is None:
            continue
        seeds = {
            seed: systems
            for seed, systems in sorted(costs[data_set.name, arms.EXITS.name].items())
            if {FULL, arms.EXITS.name, arm} <= set(systems)
        }
        full = statistics.mean(systems[FULL]["score"] for systems in seeds.values())
        found.append(Skipping(data_set.name, arm, seeds, full >= data_sets[data_set.name]["commonest"] + INFORMED))
    return found


def little_is_lost(found: Sequence[Skipping]) -> tuple[Verdict, str]:
    """Claim B1: at 2 times fewer FLOPs little is lost. The verdict, and on how many data sets it is little."""
    informed = [one for one in found if one.informed]
    differences = [one.right(one.arm, 2.0) - one.right(FULL, 2.0) for one in informed]
    verdict = _judged(LOST_AT_TWICE, informed, found, differences)
    small = sum(difference.mean() >= -LOST_ON_MOST[0] for difference in differences)
    return verdict, f"{small} of {len(informed)}"


def outperforms(found: Sequence[Skipping], reduction: float) -> Verdict:
    """Claim B2: skips and exits together are better than exits alone at equal FLOPs."""
    informed = [one for one in found if one.informed]
    differences = [one.right(one.arm, reduction) - one.right(arms.EXITS.name, reduction) for one in informed]
    return _judged(0.0, informed, found, differences)


def _judged(
    margin: float, informed: Sequence[Skipping], found: Sequence[Skipping], differences: Sequence[np.ndarray]
) -> Verdict:
    left_out = tuple(one.data_set for one in found if not one.informed)
    seeds = {one.data_set: len(one.seeds) for one in informed}
    return judged(margin, seeds, differences, left_out)


def halves(found: Sequence[Skipping], data_set: str) -> tuple[list[float], list[float]] | None:
    """Claim B3, by seed: the most that exits, and that skips and exits, save at a loss of at most a point as observed."""
    one = next((one for one in found if one.data_set == data_set), None)
    if one is None:
        return None
    exits, both = (
        [systems[name]["test.within_a_point"] or 0.0 for systems in one.seeds.values()] for name in (arms.EXITS.name, one.arm)
    )
    return exits, both


def half_words(exits: Sequence[float], both: Sequence[float]) -> tuple[str, str]:
    """Whether exits hardly help, and whether skipping is essential: on how many seeds."""
    hardly, essential = sum(value < HARDLY for value in exits), sum(value >= ESSENTIAL for value in both)
    needed = SEEDS_OF_FIVE / 5 * len(exits)
    return tuple(
        f"{'supported' if count >= needed else 'not supported'} ({count} of {len(exits)} seeds)"
        for count in (hardly, essential)
    )


@dataclass(frozen=True)
class Drop:
    """What D found on a data set: GEEP's model where all leave at the first exit, beside its last exit.

    Attributes:
        last, first: scores, means of the seeds.
        reduction: times fewer FLOPs.
        seeds: how many.
    """

    data_set: str
    last: float
    first: float
    reduction: float
    seeds: int

    @property
    def relative(self) -> float:
        """What is lost, as a share of the last exit's score."""
        return 1 - self.first / self.last if self.last > 0 else 1.0

    @property
    def within(self) -> bool:
        """Whether it is as little as the paper says."""
        return self.relative <= DROP


def drops(costs: Costs) -> list[Drop]:
    """Of each data set of D that has a model."""
    found = []
    for data_set in D.data_sets:
        full = arms.FASTBERT.name if data_set in A.data_sets else arms.GEEP.name
        runs = [
            systems[arms.GEEP.name] for systems in costs.get((data_set.name, full), {}).values() if arms.GEEP.name in systems
        ]
        if runs:
            last, first, reduction = (
                statistics.mean(run[f"test.{metric}"] for run in runs) for metric in ("last", "fastest_score", "fastest")
            )
            found.append(Drop(data_set.name, last, first, reduction, len(runs)))
    return found
