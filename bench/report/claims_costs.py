"""Of the page on the papers' claims: what GEEP's thresholds save (D), and what skipped layers do (B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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
    B,
    D,
    cells,
)
from bench.claims.judging import Verdict
from bench.claims.saving import Drop, Half, Skipping, half_words, halves, little_is_lost, outperforms, within_word
from bench.claims.sets import SETS
from bench.claims.systems import FULL
from bench.report.claims_exits import above, bounds, power_of, so_far
from bench.report.tables import lines
from bench.rows import read, records


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
            f"{one.data_set}{SCORES.get(SETS[one.data_set].metric, '')}",
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
        f"## 1 to 12 times fewer FLOPs within {DROP:.0%}?\n\nGEEP's thresholds from 0 to 1: at 1 all leave at the first exit. "
        f"Supported where the score falls by at most {DROP:.0%} of itself on {DATA_SETS_WITHIN} of {len(D.data_sets)} data "
        f"sets: {within} of the {len(found)} here. Data sets with {LEAST_SEEDS} seeds decide. "
        f"**{within_word(found).capitalize()}**{missing}. {CLOCK}"
    )
    clock = [f"wall clock at {at}" for at in TIMED_AT]
    columns = ["data set", "seeds", "last exit", "first exit", "drop", "FLOPs at 1, times fewer", *clock, "within"]
    return f"{text}\n\n{lines(columns, rows)}"


SCORES = {"map": ", mean average precision", "matthews": ", Matthews' correlation"}  # the others: right answers
TIMED_AT = ("0.3", "1")  # thresholds
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
        lines(["claim", "", "difference, points (bounds)", "supported if", "data sets", "power if equal", "verdict"], rows),
        lines(SKIPPING_COLUMNS, map(skipping_row, found)),
        tried_table(found),
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


def tried_table(found: Sequence[Skipping]) -> str:
    """Every gate and lambda of the first seed."""
    rows = []
    for one in found:
        systems = one.seeds.get(SEED, {})
        for name in (arm.name for arm in arms.SKIPPING if arm.name in systems):
            values = systems[name]
            at = [values[f"test.at_{reduction:g}"] for reduction in REDUCTIONS]
            chosen = f"**{name.removeprefix('smartbert-')}**" if name == one.arm else name.removeprefix("smartbert-")
            alone = f"{values['test.last']:.3f} at {values['test.least']:.2f}x"
            rows.append([one.data_set, chosen, *("-" if score is None else f"{score:.3f}" for score in at), alone])
    columns = ["data set", "gate, lambda", *(f"{reduction:g}x" for reduction in REDUCTIONS), "gates alone"]
    text = "Every gate and lambda of the first seed, with exits, the chosen one in bold, and its gates without exits."
    return f"{text}\n\n{lines(columns, rows)}" if rows else ""


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
    *(f"{reduction:g}x {system}" for reduction in REDUCTIONS for system in ("exits", "gates, exits")),
    "gates alone",
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
