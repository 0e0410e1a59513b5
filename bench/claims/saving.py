"""What the costs at equal FLOPs say about skipping (B) and about the speed-up by thresholds (D)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.cells import as_read
from bench.claims import arms
from bench.claims.costs import ARMS, declaration_of, known_sets
from bench.claims.design import (
    DATA_SETS_WITHIN,
    DROP,
    ESSENTIAL,
    HARDLY,
    INFORMED,
    LEAST_SEEDS,
    LOST_AT_TWICE,
    LOST_ON_MOST,
    REDUCTIONS,
    SEEDS_OF_FIVE,
    B,
    Cell,
    D,
)
from bench.claims.judging import Verdict, judged
from bench.claims.sets import SETS, DataSet
from bench.claims.systems import FULL
from bench.rows import read, records

Systems = dict[str, dict[str, Any]]  # name -> metrics
Costs = dict[tuple[str, str], dict[int, Systems]]  # (data set, arm whose last exit is full) -> seed -> its systems


def read_costs(folder: Path) -> Costs:
    """The files that `bench.claims.costs` wrote of trainings as they are declared now, but for that of the data sets."""
    found: Costs = {}
    for one in records(read(folder)):
        said = one.get("declaration", {})
        if not one["system"] or "full" not in said:
            continue
        full, data_set, arm = said["full"]["arm"], said["data_set"]["name"], said["arm"]["name"]
        if data_set not in SETS or not {full, arm} <= set(ARMS):
            continue
        declared = declaration_of(Cell(SETS[data_set], ARMS[arm], said["seed"]), ARMS[full], None)
        if said == as_read(declared):
            found.setdefault((data_set, full), {}).setdefault(said["seed"], {})[one["system"]] = one
    return {key: {seed: systems for seed, systems in seeds.items() if FULL in systems} for key, seeds in found.items()}


def read_data_sets(folder: Path) -> dict[str, dict[str, Any]]:
    """Data set -> its rows and what the commonest class scores, of the data sets as they are declared now."""
    declared = as_read(known_sets(None))
    return {
        one["system"]: one
        for one in records(read(folder))
        if one["case"] == "data_sets" and one["system"] and one["declaration"] == declared
    }


def tried_gates(costs: Costs, data_set: str) -> dict[str, float]:
    """SmartBERT -> its score on the tuning rows of the first seed at 2 times fewer FLOPs, of those that save so much."""
    first = costs.get((data_set, arms.EXITS.name), {}).get(1, {})
    tuned = {arm.name: first[arm.name]["tune.at_2"] for arm in arms.SKIPPING if arm.name in first}
    return {name: score for name, score in tuned.items() if score is not None}


def chosen_gates(costs: Costs, data_set: str) -> str | None:
    """The best of the SmartBERTs that were tried; None where there is none."""
    tried = tried_gates(costs, data_set)
    return max(tried, key=lambda name: tried[name]) if tried else None


@dataclass(frozen=True)
class Skipping:
    """What B found on a data set: the chosen SmartBERT beside exits without gates.

    Attributes:
        data_set: its name.
        arm: the chosen one.
        tried: of how many.
        seeds: that have both.
        informed: whether the full model is right clearly more often than the commonest class.
    """

    data_set: str
    arm: str
    tried: int
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
    """Of each data set of B that has both models, with the seeds where both save as much as is asked."""
    found = []
    for data_set in B.data_sets:
        arm = chosen_gates(costs, data_set.name)
        if arm is None or data_set.name not in data_sets:
            continue
        seeds = {
            seed: systems
            for seed, systems in sorted(costs[data_set.name, arms.EXITS.name].items())
            if {FULL, arms.EXITS.name, arm} <= set(systems)
            and all(systems[name][f"test.at_{most:g}"] is not None for name in (arms.EXITS.name, arm) for most in REDUCTIONS)
        }
        if seeds:
            informed = learned(seeds.values(), data_set, data_sets[data_set.name])
            found.append(Skipping(data_set.name, arm, len(tried_gates(costs, data_set.name)), seeds, informed))
    return found


def learned(seeds: Iterable[Systems], data_set: DataSet, facts: Mapping[str, float]) -> bool:
    """Whether the full model is right clearly more often than the commonest class (of a ranking: better than random order)."""
    if data_set.metric == "map":
        return statistics.mean(systems[FULL]["score"] for systems in seeds) >= facts["commonest"] + INFORMED
    rights = [systems[FULL]["right"] for systems in seeds]
    return statistics.mean(right.count("1") / len(right) for right in rights) >= facts["commonest_share"] + INFORMED


def little_is_lost(found: Sequence[Skipping]) -> tuple[Verdict, str]:
    """Claim B1: at 2 times fewer FLOPs little is lost, on average and on most data sets. The verdict, and on how many."""
    verdict = against(FULL, found, 2.0, LOST_AT_TWICE)
    most, share = LOST_ON_MOST
    small = 0 if verdict.pooled is None else sum(one.estimate >= -most for one in verdict.pooled.each)
    if verdict.word == "supported" and small < share * len(verdict.seeds):
        verdict = replace(verdict, word="undecided")
    return verdict, f"{small} of {len(verdict.seeds)}"


def outperforms(found: Sequence[Skipping], reduction: float) -> Verdict:
    """Claim B2: skips and exits together are better than exits alone at equal FLOPs."""
    return against(arms.EXITS.name, found, reduction, 0.0)


def against(other: str, found: Sequence[Skipping], reduction: float, margin: float) -> Verdict:
    """The verdict on the chosen SmartBERTs' right answers at a reduction of the FLOPs, less those of another system."""
    informed = [one for one in found if one.informed]
    differences = [one.right(one.arm, reduction) - one.right(other, reduction) for one in informed]
    left_out = tuple(one.data_set for one in found if not one.informed)
    return judged(margin, {one.data_set: len(one.seeds) for one in informed}, differences, left_out)


@dataclass(frozen=True)
class Half:
    """What a system reaches at the boldest threshold that loses at most a point on the tuning rows.

    Attributes:
        reduction: times fewer FLOPs on the test rows; None where no threshold loses as little.
        lost: on the test rows, of the metric, against the full model.
    """

    reduction: float | None
    lost: float


def halves(found: Sequence[Skipping], data_set: str) -> tuple[list[Half], list[Half]] | None:
    """Claim B3, by seed: what exits, and what skips and exits, save. None where the full model has learned too little."""
    one = next((one for one in found if one.data_set == data_set and one.informed), None)
    if one is None:
        return None

    def of(name: str) -> list[Half]:
        runs = [(systems[FULL]["score"], systems[name]) for systems in one.seeds.values()]
        return [Half(run.get("tuned.reduction"), full - run.get("tuned.score", full)) for full, run in runs]

    return of(arms.EXITS.name), of(one.arm)


def half_words(exits: Sequence[Half], both: Sequence[Half]) -> tuple[str, str]:
    """Whether exits hardly help, and whether skipping is essential: on how many seeds."""
    most = LOST_ON_MOST[0]
    hardly = sum(one.reduction is None or one.reduction < HARDLY for one in exits)
    essential = sum(one.reduction is not None and one.reduction >= ESSENTIAL and one.lost <= most for one in both)
    return _half_word(hardly, len(exits)), _half_word(essential, len(both))


def _half_word(count: int, seeds: int) -> str:
    if seeds < B.seeds:
        return f"{count} of {seeds} seeds, so far"
    return f"**{'supported' if count >= SEEDS_OF_FIVE else 'not supported'}** ({count} of {seeds} seeds)"


@dataclass(frozen=True)
class Drop:
    """What D found on a data set: GEEP's model where all leave at the first exit, beside its last exit.

    Attributes:
        last, first: scores, means of the seeds.
        reduction: times fewer FLOPs.
        seeds: how many.
        informed: whether the full model has learned, see `learned`.
    """

    data_set: str
    last: float
    first: float
    reduction: float
    seeds: int
    informed: bool

    @property
    def relative(self) -> float:
        """What is lost, as a share of the last exit's score."""
        return 1 - self.first / self.last if self.last > 0 else 1.0

    @property
    def within(self) -> bool:
        """Whether it is as little as the paper says."""
        return self.informed and self.relative <= DROP


def drops(costs: Costs, data_sets: Mapping[str, Mapping[str, Any]]) -> list[Drop]:
    """Of each data set of D that has a model."""
    found = []
    for data_set in D.data_sets:
        by_seed = {
            seed: systems
            for full in (arms.GEEP, arms.FASTBERT)
            for seed, systems in costs.get((data_set.name, full.name), {}).items()
            if arms.GEEP.name in systems
        }
        if by_seed and data_set.name in data_sets:
            last, first, reduction = (
                statistics.mean(systems[arms.GEEP.name][f"test.{metric}"] for systems in by_seed.values())
                for metric in ("last", "fastest_score", "fastest")
            )
            informed = learned(by_seed.values(), data_set, data_sets[data_set.name])
            found.append(Drop(data_set.name, last, first, reduction, len(by_seed), informed))
    return found


def within_word(found: Sequence[Drop]) -> str:
    """Claim D in a word. Data sets decide that have seeds enough."""
    decide = [one for one in found if one.seeds >= LEAST_SEEDS]
    if sum(one.within for one in decide) >= DATA_SETS_WITHIN:
        return "supported"
    if sum(one.informed and not one.within for one in decide) > len(D.data_sets) - DATA_SETS_WITHIN:
        return "not supported"
    return "undecided" if decide == list(found) else "too few seeds"
