"""Of the page on the papers' claims: verdicts on early exits, and the recipes beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.claims import arms
from bench.claims.arms import Arm
from bench.claims.design import EXPERIMENTS, Claim
from bench.claims.judging import Run, Runs, Verdict, difference, judge, shared
from bench.report.tables import lines, signed, spread


def verdicts_section(judged: Sequence[tuple[Claim, Verdict]]) -> str:
    """A line for each claim on early exits."""
    rows = [
        [
            claim.number,
            claim.hypothesis,
            bounds(verdict),
            above(claim.margin),
            len(verdict.seeds),
            power_of(verdict),
            f"**{verdict.word}**{so_far(verdict, len(claim.data_sets), claim.seeds)}",
        ]
        for claim, verdict in judged
    ]
    columns = ["claim", "", "difference, points (bounds)", "supported if", "data sets", "power", "verdict"]
    return f"## Early exits: GEEP, distillation, curriculum\n\n{lines(columns, rows)}"


def above(margin: float) -> str:
    """What the lower bound must be above, in points."""
    return f"> {-100 * margin if margin else 0:g}"


def so_far(verdict: Verdict, data_sets: int, seeds: int) -> str:
    """What is said of a verdict as long as data sets or seeds are missing that are declared."""
    missing = len(verdict.seeds) + len(verdict.uninformed) < data_sets
    return ", so far" if verdict.seeds and (missing or min(verdict.seeds.values()) < seeds) else ""


def power_of(verdict: Verdict) -> str | None:
    """Of the test, where there is any data."""
    return None if verdict.pooled is None else f"{verdict.power:.0%}"


def bounds(verdict: Verdict) -> str | None:
    """The pooled difference."""
    return None if verdict.pooled is None else signed(*vars(verdict.pooled.of_all).values())


def each_section(judged: Sequence[tuple[Claim, Verdict]], runs: Runs, commonest: Mapping[str, float]) -> str:
    """The differences on each data set."""
    rows = []
    for claim, verdict in judged:
        apart = judge(replace(claim, data_sets=claim.apart), runs, commonest)
        for of_sets, note in ((verdict, ""), (apart, " (apart)")):
            if of_sets.pooled is not None:
                for (name, seeds), interval in zip(of_sets.seeds.items(), of_sets.pooled.each, strict=True):
                    methods = [runs[name, arm] for arm in (claim.method, claim.baseline)]
                    last = [last_exit(one, shared(*methods)) for one in methods]
                    shown = signed(*vars(interval).values()), *(f"{100 * one:.1f}" for one in last)
                    rows.append([claim.number, f"{name}{note}", seeds, *shown])
            rows += [
                [claim.number, name, "-", "does not count: hardly above the commonest class"] for name in of_sets.uninformed
            ]
    columns = ["claim", "data set", "seeds", "early exits, points (bounds)", "last exit", "baseline's last exit"]
    return lines(columns, [[*row, *[None] * (len(columns) - len(row))] for row in rows]) if rows else ""


def last_exit(runs: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]) -> float:
    """Mean of these seeds."""
    return statistics.mean(runs[seed]["by_exit"][-1] for seed in seeds)


def recipes_section(runs: Runs) -> str:
    """Every arm beside the baseline of its experiment: its exits, and what its training took."""
    rows = []
    for experiment, baseline in ((EXPERIMENTS["A"], arms.FASTBERT), (EXPERIMENTS["C"], arms.EVERY_EXIT)):
        for arm in experiment.arms:
            if arm.layers == arms.LAYERS and arm != baseline:
                found = [
                    beside(runs[data_set.name, arm.name], runs[data_set.name, baseline.name])
                    for data_set in experiment.data_sets
                    if shared(runs.get((data_set.name, arm.name), {}), runs.get((data_set.name, baseline.name), {}))
                ]
                if found:
                    early_exits, last, ratios = zip(*found, strict=True)
                    points = (f"{100 * statistics.mean(one):+.1f}" for one in (early_exits, last))
                    rows.append(
                        [arm.name, epochs(arm), baseline.name, epochs(baseline), len(found), *points, spread(ratios, 2)]
                    )
    columns = [
        "arm",
        "epochs",
        "less",
        "epochs",
        "data sets",
        "early exits, points",
        "last exit, points",
        "core seconds, times",
    ]
    text = (
        "Every way to train beside its experiment's baseline, in points, on the data sets and seeds that both have. Core "
        "seconds are those of training the models and what judges difficulty; their range is that of the data sets. GEEP's "
        "paper trains for 10 epochs."
    )
    return f"{text}\n\n{lines(columns, rows)}" if rows else ""


def epochs(arm: Arm) -> str:
    """Of each of its steps."""
    return " + ".join(f"{step.epochs:g}" for step in arm.steps)


def beside(method: Mapping[int, Run], baseline: Mapping[int, Run]) -> tuple[float, float, float]:
    """On the seeds that both have: the difference of early exits and of the last exit, and the ratio of core seconds."""
    seeds, differences = shared(method, baseline), difference(method, baseline)
    if differences is None:
        raise ValueError("method and baseline must have a seed in common")
    took = [sum(core_seconds(runs[seed]) for seed in seeds) for runs in (method, baseline)]
    last = last_exit(method, seeds) - last_exit(baseline, seeds)
    return float(differences.mean()), last, took[0] / took[1]


def core_seconds(run: Mapping[str, Any]) -> float:
    """Of the training."""
    return run["training.cpu_seconds"] + run["training.difficulty.cpu_seconds"]
