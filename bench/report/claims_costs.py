"""Of the page on the papers' claims: what is saved and lost, by early exits and by skipped layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import arms
from bench.claims.design import (
    DATA_SETS_WITHIN,
    DROP,
    ESSENTIAL,
    HARDLY,
    LOST_AT_TWICE,
    LOST_ON_MOST,
    OUTPERFORMS_AT,
    REDUCTIONS,
    A,
    B,
    D,
)
from bench.claims.judging import Verdict
from bench.claims.saving import Costs, Drop, Half, Skipping, half_words, halves, little_is_lost, outperforms, within_word
from bench.claims.systems import ALL_REDUCTIONS, FULL
from bench.report.claims_exits import above, bounds, power_of, so_far
from bench.report.tables import lines
from bench.rows import read, records


def equal_flops_section(costs: Costs) -> str:
    """What each way to save loses at equal FLOPs, mean over the data sets of A, and what FastBERT loses on the same."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for data_set in A.data_sets:
        for systems in costs.get((data_set.name, arms.FASTBERT.name), {}).values():
            for name, system in systems.items():
                if name != FULL:
                    both = np.array([scores(system), scores(systems[arms.FASTBERT.name])]) - systems[FULL]["score"]
                    found.setdefault(name, {}).setdefault(data_set.name, []).append(both)
    rows = []
    for name, of_sets in found.items():
        means = np.mean([np.mean(seeds, axis=0) for seeds in of_sets.values()], axis=0)
        rows.append([name, len(of_sets), *(compared(*both, name) for both in means.T)])
    if not rows:
        return ""
    text = (
        "## At equal FLOPs\n\nWhat is lost against the full model (FastBERT's last exit) where so many times fewer FLOPs are "
        "spent, in points, mean over data sets and seeds, and in brackets what `fastbert` loses on the same ones. Each policy "
        "stands at the lowest threshold of entropy that saves at least so much on the test rows. `separate`: no two exits "
        "train one layer (SWEET-like). `small2, then full`: a complete model of two layers first (CascadeBERT-like), and who "
        "is not sure starts anew. `words, then full`: a linear classifier of tf-idf first. A dash: it cannot save so much."
    )
    return f"{text}\n\n{lines(['way', 'data sets', *(f'{reduction:g}x' for reduction in ALL_REDUCTIONS)], rows)}"


def scores(system: Mapping[str, Any]) -> list[float]:
    """At each of `ALL_REDUCTIONS`, NaN where the system cannot save so much."""
    found = (system[f"test.at_{reduction:g}"] for reduction in ALL_REDUCTIONS)
    return [math.nan if score is None else score for score in found]


def compared(ours: float, theirs: float, name: str) -> str | None:
    """Points, with those of FastBERT."""
    if math.isnan(ours):
        return None
    beside_it = "" if name == arms.FASTBERT.name or math.isnan(theirs) else f" ({100 * theirs:+.1f})"
    return f"{100 * ours:+.1f}{beside_it}"


def drops_section(found: Sequence[Drop], speeds: Mapping[str, Mapping[str, float]]) -> str:
    """Claim D.

    Args:
        found: a line each.
        speeds: data set -> "arm threshold" -> times as fast as full depth.
    """
    if not found:
        return ""
    within = sum(one.within for one in found)
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
            "yes" if one.within else "no" if one.informed else "does not count",
        ]
        for one in found
    ]
    missing = "" if len(found) == len(D.data_sets) and min(one.seeds for one in found) == D.seeds else ", so far"
    text = (
        f"## 1 to 12 times fewer FLOPs, within {DROP:.0%}\n\nGEEP's thresholds from 0 to 1: at 1 all leave at the first exit. "
        f"Supported where the score falls by at most {DROP:.0%} of itself on {DATA_SETS_WITHIN} of {len(D.data_sets)} data "
        f"sets: {within} of the {len(found)} here. **{within_word(found).capitalize()}**{missing}. {CLOCK}"
    )
    columns = ["data set", "seeds", "last exit", "first exit", "drop", "FLOPs, times fewer", "wall clock", "within"]
    return f"{text}\n\n{lines(columns, rows)}"


CLOCK = (
    "The wall clock is that of the first seed over full depth in turns, in batches of 4,096 tokens (`python -m "
    "bench.claims.clock`; machine and threads stand in its files)."
)


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
    rows = [["B1", little(small), *judged_row(lost, LOST_AT_TWICE)]]
    for reduction in REDUCTIONS:
        hypothesis = f"at {reduction:g}x skips and exits are better than exits alone"
        row = judged_row(outperforms(found, reduction), 0.0)
        rows.append(["B2", hypothesis, *(row if reduction == OUTPERFORMS_AT else [*row[:-1], "not judged"])])
    parts = [
        "## Skipping layers: SmartBERT\n\nSmartBERT, its lambda and kind of gate chosen by the tuning rows of the first seed "
        "at 2x, beside exits without gates (DeeBERT's recipe), of the same epochs, the first stage's best epoch by tuning "
        "rows; right answers where at least so many times fewer FLOPs are spent, each at the lowest threshold that saves so "
        "much.",
        lines(["claim", "", "difference, points (bounds)", "supported if", "data sets", "p", "power", "verdict"], rows),
        lines(SKIPPING_COLUMNS, map(skipping_row, found)),
        clock_table(found, speeds),
    ]
    if (both := halves(found, "rte")) is not None:
        hardly, essential = half_words(*both)
        parts.append(
            "**B3**, rte from snli, each at the boldest threshold that loses at most a point on the tuning rows. Exits save "
            f"less than {HARDLY:g}x: {hardly}; {saved(both[0])}. Skips and exits save at least {ESSENTIAL:g}x at an observed "
            f"loss of at most a point: {essential}; {saved(both[1])}."
        )
    return "\n\n".join(filter(None, parts))


def judged_row(verdict: Verdict, margin: float) -> list[str | int | None]:
    """Of a claim on skipping."""
    numbers = len(verdict.seeds), f"{verdict.p:.2f}", power_of(verdict)
    return [
        bounds(verdict), above(margin), *numbers, f"**{verdict.word}**{so_far(verdict, len(B.data_sets), B.seeds)}"
    ]  # fmt: skip


def saved(halves: Sequence[Half]) -> str:
    """What each seed saves and loses."""
    each = ("nothing" if one.reduction is None else f"{one.reduction:.2f}x at {-100 * one.lost:+.1f} points" for one in halves)
    return ", ".join(each)


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
    return f"The same policies by the wall clock, times as fast as full depth.\n\n{lines(columns, rows)}" if rows else ""


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
    least = one.mean(one.arm, "test.least")

    def score(system: str, reduction: float) -> str:
        more = f" ({least:.1f}x)" if system == one.arm and least > reduction else ""
        return f"{one.mean(system, f'test.at_{reduction:g}'):.3f}{more}"

    at = [score(system, reduction) for reduction in REDUCTIONS for system in (arms.EXITS.name, one.arm)]
    name = one.data_set if one.informed else f"{one.data_set} (does not count)"
    chosen = f"{one.arm.removeprefix('smartbert-')}, of {one.tried}"
    skips = f"{one.mean(one.arm, 'test.last'):.3f} at {least:.2f}x"
    return [name, chosen, str(len(one.seeds)), f"{one.mean(FULL, 'score'):.3f}", *at, skips]
