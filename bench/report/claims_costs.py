"""Of the page on the papers' claims: what is saved and lost, by early exits and by skipped layers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import arms
from bench.claims.clock import SEED
from bench.claims.design import (
    DATA_SETS_WITHIN,
    DROP,
    ESSENTIAL,
    HARDLY,
    LEAST_SEEDS,
    LOST_AT_TWICE,
    LOST_ON_MOST,
    OUTPERFORMS_AT,
    REDUCTIONS,
    A,
    B,
    D,
    cells,
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
        fewest, most = (extreme(map(len, of_sets.values())) for extreme in (min, max))
        seeds = f"{fewest}" if fewest == most else f"{fewest}-{most}"
        rows.append([name, len(of_sets), seeds, *(compared(*both, name) for both in means.T)])
    if not rows:
        return ""
    text = (
        "## At equal FLOPs\n\nWhat is lost against the full model (FastBERT's last exit) where so many times fewer FLOPs are "
        "spent, in points, mean over data sets and seeds, and in brackets what `fastbert` loses on the same ones. Each policy "
        "stands at the lowest threshold of entropy, in steps of 1/200, that saves at least so much on the test rows. "
        f"{said_of(found)} A dash: it cannot save so much."
    )
    return f"{text}\n\n{lines(['way', 'data sets', 'seeds', *(f'{reduction:g}x' for reduction in ALL_REDUCTIONS)], rows)}"


WAYS = {
    "separate": "no two exits train one layer (SWEET-like)",
    "joint": "all exits' losses at once",
    "small2, then full": "a model of the lowest two layers first, fine-tuned alone, and who is not sure starts anew "
    "(CascadeBERT-like, whose small models were pretrained as such and trained to tell the hard texts)",
    "small4, then full": "likewise with four",
    "words, then full": "a linear classifier of tf-idf first",
}


def said_of(found: Collection[str]) -> str:
    """What the ways are, and which of them are declared and not run yet."""
    there = " ".join(f"`{name}`: {words}." for name, words in WAYS.items() if name in found)
    missing = [name for name in WAYS if name not in found]
    return f"{there} Not run yet: {', '.join(f'`{name}`' for name in missing)}." if missing else there


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
    rows = [
        [
            one.data_set,
            one.seeds,
            f"{one.last:.3f}",
            f"{one.first:.3f}",
            f"{one.relative:.1%}",
            f"{one.reduction:.1f}x",
            *(of_wall_clock(speeds.get(one.data_set, {}).get(f"{arms.GEEP.name} {at}")) for at in TIMED_AT),
            "yes" if one.within else "no" if one.informed else "does not count",
        ]
        for one in found
    ]
    missing = "" if len(found) == len(D.data_sets) and min(one.seeds for one in found) == D.seeds else ", so far"
    text = (
        f"## 1 to 12 times fewer FLOPs, within {DROP:.0%}\n\nGEEP's thresholds from 0 to 1: at 1 all leave at the first exit. "
        f"Supported where the score falls by at most {DROP:.0%} of itself on {DATA_SETS_WITHIN} of {len(D.data_sets)} data "
        f"sets: {within} of the {len(found)} here. Data sets with {LEAST_SEEDS} seeds decide. "
        f"**{within_word(found).capitalize()}**{missing}. {CLOCK}"
    )
    clock = [f"wall clock at {at}" for at in TIMED_AT]
    columns = ["data set", "seeds", "last exit", "first exit", "drop", "FLOPs at 1, times fewer", *clock, "within"]
    return f"{text}\n\n{lines(columns, rows)}"


TIMED_AT = ("0.1", "0.3", "0.7", "1")  # thresholds
CLOCK = (
    "The wall clock is that of the first seed, times as fast as full depth in turns, on texts of about 8,192 tokens in batches "
    "of 4,096 (`python -m bench.claims.clock`; machine and threads stand in its files). Below 1x exits do not pay."
)


def of_wall_clock(speed: float | None) -> str | None:
    """Times as fast as full depth."""
    return None if speed is None else f"{speed:.2f}x" if speed < 2 else f"{speed:.1f}x"


def read_speeds(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Arm whose full depth is the baseline -> data set -> "arm policy" -> times as fast, as `bench.claims.clock` wrote them of
    models as they are declared now.
    """
    known = {f"{cell.name.removesuffix(f'.{SEED}')}.clock": cell for cell in cells(seeds=[SEED])}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one in records(read(folder)):
        cell, said = known.get(one["case"]), one["declaration"]
        if cell is not None and cell.as_read().items() <= said.items() and "limit" not in said and "speed_up" in one:
            found.setdefault(cell.arm.name, {}).setdefault(cell.data_set.name, {})[one["system"]] = one["speed_up"]
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
        f"at 2x among those that are trained ({len(arms.SKIPPING)} are declared), beside exits without gates (DeeBERT's "
        "recipe), of the same epochs, the first stage's best epoch by tuning rows; right answers where at least so many times "
        "fewer FLOPs are spent, each at the lowest threshold that saves so much, of the seeds that can save all of it. The "
        "published gate, `attention`, reads the first token, and this backbone was pretrained for the mean of all tokens: that "
        "may handicap it.",
        lines(["claim", "", "difference, points (bounds)", "supported if", "data sets", "power", "verdict"], rows),
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
    said = f"**{verdict.word}**{so_far(verdict, len(B.data_sets), B.seeds)}"
    return [bounds(verdict), above(margin), len(verdict.seeds), power_of(verdict), said]


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
