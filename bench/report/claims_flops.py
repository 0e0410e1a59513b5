"""Of the page on the papers' claims: what each way to save loses at equal FLOPs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from bench.claims import arms
from bench.claims.design import LOST_ON_MOST, A
from bench.claims.saving import Costs, Systems
from bench.claims.systems import ALL_REDUCTIONS, FULL
from bench.report.tables import lines

MOST_SHOWN = 100  # times fewer FLOPs: words alone cost next to nothing
WAYS = {
    "separate": "no two exits train one layer (SWEET-like)",
    "joint": "all exits' losses at once",
    "small2, then full": "a model of the lowest two layers first, fine-tuned alone, and who is not sure starts anew "
    "(CascadeBERT-like, whose small models were pretrained as such and trained to tell the hard texts)",
    "small4, then full": "likewise with four",
    "words, then full": "a linear classifier of tf-idf first",
}


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
    table = lines(["way", "data sets", "seeds", *(f"{reduction:g}x" for reduction in ALL_REDUCTIONS)], rows)
    return "\n\n".join((text, table, by_data_set(costs, list(found))))


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


def by_data_set(costs: Costs, ways: list[str]) -> str:
    """A line for each data set of A: what the ways lose at twice fewer FLOPs, and what they save for a point."""
    twice, tuned = [], []
    for data_set in A.data_sets:
        seeds = costs.get((data_set.name, arms.FASTBERT.name), {}).values()
        if seeds:
            twice.append([data_set.name, *(points(mean(less(one, way, "test.at_2") for one in seeds)) for way in ways)])
            tuned.append([data_set.name, *(saved(seeds, way) for way in ways)])
    words = (
        f"And what they save at the boldest threshold that loses at most {100 * LOST_ON_MOST[0]:g} point on the tuning rows, "
        "with what that loses on the test rows:"
    )
    columns = ["data set", *ways]
    return "\n\n".join(("By data set, what they lose at 2x:", lines(columns, twice), words, lines(columns, tuned)))


def less(systems: Systems, way: str, metric: str) -> float | None:
    """A score less the full model's; None where there is none."""
    score = systems.get(way, {}).get(metric)
    return None if score is None else score - systems[FULL]["score"]


def saved(seeds: Iterable[Systems], way: str) -> str | None:
    """How many times fewer FLOPs, and at what loss."""
    there = [one for one in seeds if one.get(way, {}).get("tuned.reduction") is not None]
    if not there:
        return None
    reduction = statistics.mean(one[way]["tuned.reduction"] for one in there)
    times = f"{reduction:.1f}x" if reduction < MOST_SHOWN else f"over {MOST_SHOWN}x"
    return f"{times} at {points(mean(less(one, way, 'tuned.score') for one in there))}"


def mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there; None without any."""
    found = [value for value in values if value is not None]
    return statistics.mean(found) if found else None


def points(value: float | None) -> str | None:
    """Of a hundred."""
    return None if value is None else f"{100 * value:+.1f}"
