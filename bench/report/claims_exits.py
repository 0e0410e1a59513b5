"""Of the page on the papers' claims: verdicts on early exits, and the recipes beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

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
            f"**{verdict.word}**{worse(verdict)}{so_far(verdict, len(claim.data_sets), claim.seeds)}",
        ]
        for claim, verdict in judged
    ]
    columns = ["claim", "", "difference, points (bounds)", "supported if", "data sets", "power if equal", "verdict"]
    text = (
        "The early exits are those after layers 1 to 6 (A), and after each layer (C). Each counts alike, whether or not many "
        "texts would leave there."
    )
    return f"## Early exits: GEEP, distillation, curriculum\n\n{text}\n\n{lines(columns, rows)}"


def worse(verdict: Verdict) -> str:
    """What an open verdict has decided all the same."""
    below = verdict.word == "undecided" and verdict.pooled is not None and verdict.pooled.of_all.high < 0
    return ": worse, by how much is open" if below else ""


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


def by_exit_section(runs: Runs) -> str:
    """GEEP beside FastBERT, exit by exit."""
    rows = []
    for data_set in EXPERIMENTS["A"].data_sets:
        methods = [runs.get((data_set.name, arm.name), {}) for arm in (arms.GEEP, arms.FASTBERT)]
        if seeds := shared(*methods):
            ours, theirs = (np.mean([method[seed]["by_exit"] for seed in seeds], axis=0) for method in methods)
            each = zip(theirs, ours - theirs, strict=True)
            rows.append([data_set.name, len(seeds), *(f"{100 * score:.1f} ({100 * less:+.1f})" for score, less in each)])
    columns = ["data set", "seeds", *(f"exit {layer}" for layer in arms.GEEP_EXITS)]
    text = "What FastBERT's exits score, and in brackets what GEEP's score more or less, in points."
    return f"{text}\n\n{lines(columns, rows)}" if rows else ""


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
                    compared = f"{arm.name}: {told(arm)}", f"{baseline.name}: {told(baseline)}"
                    rows.append([*compared, len(found), *points, spread(ratios, 2)])
    columns = ["way to train", "beside", "data sets", "early exits", "last exit", "core seconds, times"]
    text = (
        "Every way to train beside its experiment's baseline, in points, on the data sets and seeds that both have: recipes "
        "with settings as `geep train` takes them, and epochs. Core seconds are those of training the models and what judges "
        "difficulty; their range is that of the data sets. GEEP's paper trains for 10 epochs."
    )
    return f"{text}\n\n{lines(columns, rows)}" if rows else ""


def told(arm: Arm) -> str:
    """The recipe of each of its steps, with settings and epochs."""
    steps = []
    for step in arm.steps:
        settings = [f"{name}={value}" for name, value in step.settings.items()]
        curriculum = " with a curriculum" if step.curriculum is not None else ""
        steps.append(f"`{' '.join((step.recipe, *settings))}`{curriculum}, {step.epochs:g} epochs")
    return ", then ".join(steps)


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
