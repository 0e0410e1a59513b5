"""The page on the papers' claims, from whatever cells have results; says what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.claims import arms
from bench.claims.costs import FULL
from bench.claims.design import (
    DATA_SETS_WITHIN,
    DROP,
    EARLY_EXITS,
    ESSENTIAL,
    EXPERIMENTS,
    HARDLY,
    INFORMED,
    LOST_AT_TWICE,
    LOST_ON_MOST,
    POWER,
    REDUCTIONS,
    RELEVANT,
    A,
    Claim,
    D,
    Experiment,
)
from bench.claims.judging import Runs, Verdict, judge, read_runs
from bench.claims.saving import (
    Costs,
    Drop,
    Skipping,
    drops,
    half_words,
    halves,
    little_is_lost,
    outperforms,
    read_costs,
    read_data_sets,
    skippings,
)
from bench.environment import RESULTS
from bench.report.tables import lines, signed, spread
from bench.rows import read, records

FOLDER = RESULTS / "claims"
INTRODUCTION = f"""# What the papers claim

Made by `python -m bench.report` from `bench/results/claims`, which `python -m bench.claims.train` and `.costs` write. Data
sets, arms, seeds, margins and endpoints are declared in `bench/claims/design.py` and `arms.py`, before the runs. The model is
multilingual-e5-small: 12 layers of width 384, dequantized from 4 bit, its word embeddings frozen. Up to 4,000 training rows,
up to 5,000 test rows, subsets and splits of ours: compare methods, not the papers' tables. Gu et al. and GEEP's exit table
are *our reconstruction*.

Bounds are one-sided with 95 % confidence, of a bootstrap over data sets, seeds and rows. **Power** is the probability that
the test says "supported" if the two methods do not differ (of a claim to be better: if it is better by {100 * RELEVANT:g}
point). Under {POWER:.0%} there is no verdict but "too few rows". Data sets on which the full model is less than
{100 * INFORMED:g} points above the commonest class do not count."""


def verdicts_section(judged: Sequence[tuple[Claim, Verdict]]) -> str:
    """A line for each claim on early exits."""
    rows = [
        [
            claim.number,
            claim.hypothesis,
            bounds(verdict),
            f"> {-100 * claim.margin:g}",
            len(verdict.seeds),
            f"{verdict.p:.2f}",
            f"{verdict.power:.0%}",
            f"**{verdict.word}**{so_far(claim, verdict)}",
        ]
        for claim, verdict in judged
    ]
    columns = ["claim", "", "difference, points (bounds)", "supported if", "data sets", "sign-flip p", "power", "verdict"]
    return f"## Early exits: GEEP, distillation, curriculum\n\n{lines(columns, rows)}"


def so_far(claim: Claim, verdict: Verdict) -> str:
    """What is said of a verdict as long as data sets are missing, or have a single seed."""
    missing = len(claim.data_sets) - len(verdict.seeds) - len(verdict.uninformed)
    return ", so far" if verdict.seeds and (missing or min(verdict.seeds.values()) == 1) else ""


def bounds(verdict: Verdict) -> str:
    """The pooled difference."""
    if verdict.pooled is None:
        return "-"
    return signed(*vars(verdict.pooled.of_all).values())


def each_section(judged: Sequence[tuple[Claim, Verdict]], runs: Runs) -> str:
    """The differences on each data set."""
    rows = []
    for claim, verdict in judged:
        if verdict.pooled is None:
            continue
        for (name, seeds), interval in zip(verdict.seeds.items(), verdict.pooled.each, strict=True):
            last = [last_exit(runs[name, arm]) for arm in (claim.method, claim.baseline)]
            rows.append([claim.number, name, seeds, signed(*vars(interval).values()), *(f"{100 * one:.1f}" for one in last)])
        rows += [[claim.number, name, "-", "does not count: hardly above the commonest class"] for name in verdict.uninformed]
    columns = ["claim", "data set", "seeds", "early exits, points (bounds)", "last exit", "baseline's last exit"]
    return lines(columns, [[*row, *[None] * (len(columns) - len(row))] for row in rows]) if rows else ""


def last_exit(runs: Mapping[int, Mapping[str, Any]]) -> float:
    """Mean of the seeds."""
    return statistics.mean(run["by_exit"][-1] for run in runs.values())


def training_section(runs: Runs) -> str:
    """What each arm's training took over that of its experiment's baseline, and its early exits."""
    rows = []
    for experiment, baseline in ((EXPERIMENTS["A"], arms.FASTBERT), (EXPERIMENTS["C"], arms.EVERY_EXIT)):
        for arm in experiment.arms:
            if (
                arm.layers == arms.LAYERS
                and arm != baseline
                and (ratios := time_ratios(experiment, arm.name, baseline.name, runs))
            ):
                rows.append([arm.name, baseline.name, len(ratios), spread(ratios, 2)])
    columns = ["arm", "over", "data sets", "core seconds of training"]
    return (
        f"Training, difficulties included, mean of the seeds; the range is that of the data sets:\n\n{lines(columns, rows)}"
        if rows
        else ""
    )


def time_ratios(experiment: Experiment, arm: str, baseline: str, runs: Runs) -> list[float]:
    """Core seconds over the baseline's, of each data set on the seeds that have both."""
    found = []
    for data_set in experiment.data_sets:
        method, other = (runs.get((data_set.name, name), {}) for name in (arm, baseline))
        seeds = set(method) & set(other)
        if seeds:
            found.append(sum(core_seconds(method[seed]) for seed in seeds) / sum(core_seconds(other[seed]) for seed in seeds))
    return found


def core_seconds(run: Mapping[str, Any]) -> float:
    """Of the training."""
    return run["training.cpu_seconds"] + run["training.difficulty.cpu_seconds"]


def equal_flops_section(costs: Costs) -> str:
    """What each way to save loses at equal FLOPs, mean over the data sets of A."""
    shown = (*REDUCTIONS, 4.0, 6.0)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for data_set in A.data_sets:
        for systems in costs.get((data_set.name, arms.FASTBERT.name), {}).values():
            for name, system in systems.items():
                if name != FULL:
                    losses = [system[f"test.at_{reduction:g}"] - systems[FULL]["score"] for reduction in shown]
                    found.setdefault(name, {}).setdefault(data_set.name, []).append(losses)
    rows = []
    for name, of_sets in found.items():
        means = [
            statistics.mean(statistics.mean(seed[at] for seed in seeds) for seeds in of_sets.values())
            for at in range(len(shown))
        ]
        rows.append([name, len(of_sets), *(f"{100 * mean:+.1f}" for mean in means)])
    if not rows:
        return ""
    text = (
        "## At equal FLOPs\n\nWhat is lost against the full model (FastBERT's last exit) where so many times fewer FLOPs are "
        "spent, in points, mean over data sets and seeds. `separate`: no two exits train one layer (SWEET-like). `small2, then "
        "full`: a complete model of two layers first (CascadeBERT-like), and who is not sure starts anew. `words, then full`: "
        "a linear classifier of tf-idf first. Each policy stands at the lowest threshold of entropy that saves so much."
    )
    return f"{text}\n\n{lines(['way', 'data sets', *(f'{reduction:g}x' for reduction in shown)], rows)}"


def drops_section(found: Sequence[Drop], speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Claim D.

    Args:
        found: a line each.
        speeds: data set -> "arm threshold" -> times as fast as full depth.
    """
    if not found:
        return ""
    within = sum(one.within for one in found)
    word = (
        "supported"
        if within >= DATA_SETS_WITHIN
        else "not supported"
        if len(found) - within > len(D.data_sets) - DATA_SETS_WITHIN
        else "undecided"
    )
    fastest = {one.data_set: of_wall_clock(speeds.get(one.data_set, {}).get(f"{arms.GEEP.name} 1")) for one in found}
    rows = [
        [
            one.data_set,
            one.seeds,
            f"{one.last:.3f}",
            f"{one.first:.3f}",
            f"{one.relative:.1%}",
            f"{one.reduction:.1f}x",
            fastest[one.data_set],
            "yes" if one.within else "no",
        ]
        for one in found
    ]
    text = (
        f"## 1 to 12 times fewer FLOPs, within {DROP:.0%}\n\nGEEP's thresholds from 0 to 1: at 1 all leave at the first exit. "
        f"Supported where the score falls by at most {DROP:.0%} of itself on {DATA_SETS_WITHIN} of {len(D.data_sets)} data "
        f"sets. So far {within} of {len(found)}: **{word}**."
    )
    columns = ["data set", "seeds", "last exit", "first exit", "drop", "FLOPs, times fewer", "wall clock", "within"]
    return f"{text}\n\n{lines(columns, rows)}"


def of_wall_clock(speed: float | None) -> str | None:
    """Times as fast as full depth."""
    return None if speed is None else f"{speed:.1f}x"


def read_speeds(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Arm whose full depth is the baseline -> data set -> "arm policy" -> times as fast, as `bench.claims.clock` wrote them."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one in records(read(folder)):
        if "speed_up" in one:
            data_set, plain, _ = one["case"].split(".")
            found.setdefault(plain, {}).setdefault(data_set, {})[one["system"]] = one["speed_up"]
    return found


def skipping_section(found: Sequence[Skipping], speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Claims B1 to B3.

    Args:
        found: a line each.
        speeds: data set -> "arm reduction" -> times as fast as full depth.
    """
    if not found:
        return ""
    lost, small = little_is_lost(found)
    better = {reduction: outperforms(found, reduction) for reduction in REDUCTIONS}
    rows = [["B1", little(small), bounds(lost), f"> {-100 * LOST_AT_TWICE:g}", f"{lost.power:.0%}", f"**{lost.word}**"]]
    for reduction, one in better.items():
        hypothesis = f"at {reduction:g}x skips and exits are better than exits alone"
        rows.append(["B2", hypothesis, bounds(one), "> 0", f"{one.power:.0%}", f"**{one.word}**"])
    parts = [
        "## Skipping layers: SmartBERT\n\nThe chosen SmartBERT (lambda and kind of gate by the tuning rows of the first seed) "
        "beside exits without gates (DeeBERT's recipe), of the same epochs, the first stage's best epoch by tuning rows; right "
        "answers at equal FLOPs.",
        lines(["claim", "", "difference, points (bounds)", "supported if", "power", "verdict"], rows),
        lines(SKIPPING_COLUMNS, map(skipping_row, found)),
        clock_table(found, speeds),
    ]
    if (both := halves(found, "rte")) is not None:
        hardly, essential = half_words(*both)
        parts.append(
            f"**B3**, rte from snli, at an observed loss of at most a point. Exits save less than {HARDLY:g}x: {hardly}, "
            f"{spread(both[0], 2)}x. Skips and exits save at least {ESSENTIAL:g}x: {essential}, {spread(both[1], 2)}x."
        )
    return "\n\n".join(filter(None, parts))


def little(small: str) -> str:
    """Claim B1 in words."""
    needed = f"{LOST_ON_MOST[1]:.0%} are needed"
    return f"at 2x little is lost against the full model (at most a point on {small} data sets; {needed})"


def clock_table(found: Sequence[Skipping], speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Wall clock at equal FLOPs."""
    rows = []
    for one in found:
        of_set = speeds.get(one.data_set, {})
        names = [f"{system} {reduction:g}x" for reduction in REDUCTIONS for system in (arms.EXITS.name, one.arm)]
        if of_set:
            rows.append([one.data_set, *(of_wall_clock(of_set.get(name)) for name in names)])
    columns = ["data set", *SKIPPING_COLUMNS[4:-1]]
    return (
        f"The same policies by the wall clock, times as fast as full depth, first seed:\n\n{lines(columns, rows)}"
        if rows
        else ""
    )


SKIPPING_COLUMNS = (
    "data set",
    "gate, lambda",
    "seeds",
    "full",
    *(f"{reduction:g}x {system}" for reduction in REDUCTIONS for system in ("exits", "both")),
    "skips, all scored",
)


def skipping_row(one: Skipping) -> list[str]:
    """Scores on a data set."""
    at = [
        f"{one.mean(system, f'test.at_{reduction:g}'):.3f}" for reduction in REDUCTIONS for system in (arms.EXITS.name, one.arm)
    ]
    name = one.data_set if one.informed else f"{one.data_set} (does not count)"
    skips = f"{one.mean(one.arm, 'test.last'):.3f} at {one.mean(one.arm, 'test.least'):.2f}x"
    return [name, one.arm.removeprefix("smartbert-"), str(len(one.seeds)), f"{one.mean(FULL, 'score'):.3f}", *at, skips]


RULES = {
    "binomial": "binomial test, in sequence (ours)",
    "betting": "betting, in sequence (RC-EENN's upper confidence bound)",
    "mapie": "Hoeffding and Bentkus, Bonferroni and Holm (MAPIE)",
    "on average": "conformal, on average (RC-EENN's and CALM's)",
}


def controlled_section(folder: Path) -> str:
    """Rules of risk control beside each other."""
    found = [one for one in records(read(folder)) if one["system"] in RULES]
    if not found:
        return ""
    promises, rows = sorted({one["promise"] for one in found}, reverse=True), []
    for rule, name in RULES.items():
        cells: list[str] = []
        for promise in promises:
            of_rule = [one for one in found if one["system"] == rule and one["promise"] == promise]
            kept = statistics.mean(one["kept"] / one["of"] for one in of_rule)
            worst = min(of_rule, key=lambda one: one["kept"] / one["of"])
            layers = statistics.mean(one["layers"] for one in of_rule)
            cells += [f"{kept:.1%} (worst {worst['kept']} of {worst['of']})", f"{layers:.2f}"]
        rows.append([name, *cells])
    models = len({one["case"] for one in found})
    text = (
        "## Rules of risk control\n\nThe same thresholds of entropy at every exit, the same calibration texts: which threshold "
        f"does each rule choose? Calibrations that keep their promise, of 200 for each of {models} models (`python -m "
        "bench.plans.controlled`), and the mean layers of a text. All rules but the last promise to keep it with 95 % "
        "confidence, so that 190 of 200 are asked for, but for chance."
    )
    columns = ["rule", *(f"{what} {promise:g}" for promise in promises for what in ("keeps", "layers,"))]
    return f"{text}\n\n{lines(columns, rows)}"


def missing_section(runs: Runs) -> str:
    """What is declared and not run."""
    parts = []
    for experiment in EXPERIMENTS.values():
        cells = list(experiment.cells())
        there = sum(cell.seed in runs.get((cell.data_set.name, cell.arm.name), {}) for cell in cells)
        parts.append(f"{experiment.name} {there} of {len(cells)}")
    return f"Trained of what is declared: {', '.join(parts)}."


def page(folder: Path = FOLDER) -> str:
    """The whole page."""
    runs, costs = read_runs(folder / "training"), read_costs(folder / "costs")
    data_sets = read_data_sets(folder / "costs")
    commonest = {name: one["commonest"] for name, one in data_sets.items()}
    judged = [(claim, judge(claim, runs, commonest)) for claim in EARLY_EXITS]
    speeds = read_speeds(folder / "clock")
    parts = [
        INTRODUCTION,
        missing_section(runs),
        verdicts_section(judged),
        each_section(judged, runs),
        training_section(runs),
        equal_flops_section(costs),
        drops_section(drops(costs), speeds.get(arms.GEEP.name, {})),
        skipping_section(skippings(costs, data_sets), speeds.get(arms.EXITS.name, {})),
        controlled_section(RESULTS / "plans" / "controlled"),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
