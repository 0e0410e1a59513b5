"""Families of policies on recorded exits: settings from cautious to bold, and what each does with the texts that judge them.

A family that chooses its exits, or where it plans, chooses them by texts of the table that nothing was learned from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch

from bench.plans.outcomes import (
    Means,
    Outcome,
    best_exits,
    by_threshold,
    constant,
    first_agreeing,
    frontier,
    planned,
    planned_ahead,
    replanned,
)
from bench.plans.record import Part
from bench.plans.signals import BOTH, COUNTED, STATES, TABLE, Signals, Texts, learn, spaced
from geep_triton.promises.families import FitSamples

SETTINGS = 160  # of one choice of exits; a coarse grid hides a tenth of a layer
LEARNED_SHARE = 0.75  # of the table's texts; the others choose exits
LEAST_AGREEMENT = 0.85  # chosen settings that agree less are no use for any promise here
PRICES = torch.cat([torch.zeros(1), torch.logspace(-4.5, -0.3, SETTINGS - 1)])
STARTING_PRICES = (0.0125, 0.025, 0.05, 0.1, 0.2)  # of a layer, in agreement, where texts are looked at afterwards
RATIOS = (0.25, 0.5, 1.0, 2.0)
NAMES = {STATES: "states", TABLE: "the table", BOTH: "both"}  # of what nets read
STARTED = {"threshold": "entropy", "risk": "risk"}  # name -> score
ORACLE, PER_LAYER = "oracle", "threshold per layer"

Choice = Any  # exits, or where texts are looked at first
Run = Callable[[Signals, Choice, torch.Tensor], Outcome]


@dataclass(frozen=True)
class Kind:
    """How a family answers texts.

    Attributes:
        name: of the family.
        choices: of exits, in which a setting is tried; one where there is nothing to choose.
        settings: the values of a choice, from cautious to bold, by texts of the table.
        run: answers texts.
        by_all: whether all texts of the table choose, which they may where nothing was learned from them.
    """

    name: str
    choices: Sequence[Choice]
    settings: Callable[[Signals, Choice], torch.Tensor]
    run: Run
    by_all: bool = False


@dataclass(frozen=True)
class Family:
    """Settings from cautious to bold, and what they do with the judge texts.

    Attributes:
        name: in tables.
        outcomes: by what a look costs, in layers; the same where the family does not depend on it.
    """

    name: str
    outcomes: Mapping[float, Outcome]


def threshold_kind(name: str, score: str, choices: Sequence[tuple[int, ...]], by_all: bool = False) -> Kind:
    """A threshold on a score in some exits. Settings are quantiles of the score there."""

    def settings(signals: Signals, exits: tuple[int, ...]) -> torch.Tensor:
        return quantiles(signals.scores[score][:, list(exits)])

    def run(signals: Signals, exits: tuple[int, ...], values: torch.Tensor) -> Outcome:
        return by_threshold(signals.scores[score], exits, values)

    return Kind(name, choices, settings, run, by_all)


def planned_kind(name: str, forecast: str, early: int) -> Kind:
    """One plan after some layer, at a price."""

    def run(signals: Signals, first: int, prices: torch.Tensor) -> Outcome:
        return planned(signals.forecasts[forecast][:, first, first:], first, prices)

    return Kind(name, range(early), lambda signals, first: PRICES, run)


def ahead_kind(name: str, what: str) -> Kind:
    """One plan before the first layer, at a price."""
    return Kind(name, (None,), lambda signals, _: PRICES, lambda signals, _, prices: planned_ahead(signals.ahead[what], prices))


def started_kind(name: str, score: str) -> Kind:
    """A threshold on a score from the exit on to which the table sends a text, at a price."""

    def settings(signals: Signals, price: float) -> torch.Tensor:
        return quantiles(signals.scores[score])

    def run(signals: Signals, price: float, values: torch.Tensor) -> Outcome:
        starts = best_exits(signals.ahead[TABLE], 0, torch.tensor([price]))[0]
        return by_threshold(signals.scores[score], range(signals.texts.early), values, starts)

    return Kind(name, STARTING_PRICES, settings, run)


def replanned_kind(name: str, forecast: str, early: int) -> Kind:
    """A plan at every look."""

    def settings(signals: Signals, choice: tuple[int, float]) -> torch.Tensor:
        return quantiles(signals.scores["risk"])

    def run(signals: Signals, choice: tuple[int, float], values: torch.Tensor) -> Outcome:
        return replanned(signals.forecasts[forecast], *choice, values)

    return Kind(name, [(first, ratio) for first in range(early) for ratio in RATIOS], settings, run)


def counted_kind(name: str, how: str) -> Kind:
    """The exit that a share of texts with such tokens needs at most, by counts."""

    def run(signals: Signals, _: Choice, shares: torch.Tensor) -> Outcome:
        below = signals.counted[how].cumsum(1)[None] < 1 - shares[:, None, None] - 1e-6
        exits = below.sum(-1).clamp(max=signals.texts.early)
        return Outcome(exits.to(torch.uint8), torch.ones_like(exits, dtype=torch.uint8), torch.ones_like(exits).bool())

    return Kind(name, (None,), lambda signals, _: torch.linspace(0, 1, SETTINGS), run)


def quantiles(scores: torch.Tensor) -> torch.Tensor:
    """[S <= `SETTINGS`] ascending: of a share of the values as many lie between two of them."""
    values = scores.flatten().sort().values
    return values[torch.linspace(0, len(values) - 1, SETTINGS).long()].unique()


def kinds(num_layers: int) -> list[Kind]:
    """All that are measured, for a model of so many layers."""
    early = num_layers - 1
    every = (tuple(range(early)),)
    some = {most: [of for size in range(1, most + 1) for of in combinations(range(early), size)] for most in (1, 2, 3)}
    found = [
        threshold_kind("threshold", "entropy", every),
        threshold_kind("threshold at 1 exit", "entropy", some[1]),
        threshold_kind("threshold at 2 exits", "entropy", some[2]),
        threshold_kind("threshold at 2 exits, all texts", "entropy", some[2], by_all=True),
        threshold_kind("threshold at 3 exits, all texts", "entropy", some[3], by_all=True),
        threshold_kind("threshold, spaced exits", "entropy", (spaced(num_layers),)),
        threshold_kind("margin", "margin", every),
        threshold_kind("isotonic", "isotonic", every),
        threshold_kind("isotonic at 2 exits", "isotonic", some[2]),
        threshold_kind("BEEM", "streak", every),
        threshold_kind("BEEM, weighted", "weighted streak", every),
        threshold_kind("DE3", "distance", every),
        threshold_kind("risk", "risk", every),
    ]
    found += [threshold_kind(f"risk at {most} exit{'s' * (most > 1)}", "risk", some[most]) for most in (1, 2, 3)]
    found += [threshold_kind(f"risk at 2 exits, with {NAMES[what]}", f"risk {what}", some[2]) for what in (STATES, TABLE)]
    found += [started_kind(f"{name}, started by the table", score) for name, score in STARTED.items()]
    found += [planned_kind("planned", "", early)]
    found += [planned_kind(f"planned, with {NAMES[what]}", what, early) for what in (STATES, TABLE)]
    found += [replanned_kind("replanned", "", early)]
    found += [ahead_kind(f"planned ahead, {NAMES[what]}", what) for what in (STATES, TABLE, BOTH)]
    return found + [counted_kind(f"predicted, {how.replace('_', ' ')}", how) for how in COUNTED]


def split(table: Part, seed: int = 0) -> tuple[Part, Part]:
    """The table's texts to learn from, and those that choose."""
    order = torch.randperm(len(table.logits), generator=torch.Generator().manual_seed(seed))
    count = int(LEARNED_SHARE * len(order))
    return table.select(order[:count]), table.select(order[count:])


class Readings(NamedTuple):
    """What policies read of texts.

    Attributes:
        choosing: of the table, from which nothing was learned.
        table: all of it.
        judging: those that calibrate and judge.
    """

    choosing: Signals
    table: Signals
    judging: Signals


def readings(table: Part, judge: Part, seed: int = 0) -> Readings:
    """Learn from a part of the table, and read all texts."""
    learning, choosing = split(table, seed)
    learned = learn(Texts(learning), seed)
    return Readings(*(Signals(Texts(part), learned) for part in (choosing, table, judge)))


def chosen(kind: Kind, signals: Signals, stop_costs: Sequence[float]) -> dict[float, list[tuple[Choice, float]]]:
    """By what a look costs, the choices and values of a kind that are worth it, from cautious to bold.

    Args:
        kind: with several choices.
        signals: of the texts that choose.
        stop_costs: of a look.
    """
    values = [kind.settings(signals, choice) for choice in kind.choices]
    found = [
        kind.run(signals, choice, of_choice).means(signals.texts.agrees)
        for choice, of_choice in zip(kind.choices, values, strict=True)
    ]
    means = Means(*(torch.cat(list(parts)) for parts in zip(*found, strict=True)))
    pairs = [(choice, float(value)) for choice, of in zip(kind.choices, values, strict=True) for value in of]
    return {cost: [pairs[index] for index in frontier(means, cost, LEAST_AGREEMENT).tolist()] for cost in stop_costs}


def run_pairs(kind: Kind, signals: Signals, pairs: Sequence[tuple[Choice, float]]) -> Outcome:
    """What these choices and values do, in their order."""
    by_choice: dict[Choice, list[int]] = {}
    for index, (choice, _) in enumerate(pairs):
        by_choice.setdefault(choice, []).append(index)
    parts = [
        kind.run(signals, choice, torch.tensor([pairs[index][1] for index in indices])) for choice, indices in by_choice.items()
    ]
    order = torch.tensor([index for indices in by_choice.values() for index in indices])
    return Outcome.concatenate(parts).select(order.argsort())


def family_of(kind: Kind, read: Readings, stop_costs: Sequence[float]) -> Family:
    """The family, as it answers the judge texts."""
    choosing, judging = read.table if kind.by_all else read.choosing, read.judging
    if len(kind.choices) == 1:
        choice = kind.choices[0]
        only = kind.run(judging, choice, kind.settings(choosing, choice))
        return Family(kind.name, dict.fromkeys(stop_costs, only))
    found = chosen(kind, choosing, stop_costs)
    return Family(kind.name, {cost: run_pairs(kind, judging, pairs) for cost, pairs in found.items()})


def families(read: Readings, stop_costs: Sequence[float]) -> Iterator[Family]:
    """All of them, one after the other, since each takes memory. See `per_layer` for the one that is not among them.

    Args:
        read: of the texts.
        stop_costs: what a look may cost, in layers.
    """
    texts = read.judging.texts
    yield Family("constant", dict.fromkeys(stop_costs, constant(texts.samples, texts.num_layers)))
    yield Family(ORACLE, dict.fromkeys(stop_costs, first_agreeing(texts.agrees)))
    for kind in kinds(texts.num_layers):
        yield family_of(kind, read, stop_costs)


def per_layer(texts: Texts, fit: torch.Tensor, judge: torch.Tensor, stop_cost: float) -> Outcome:
    """The library's thresholds per layer: fitted to some of the judge texts, which then must not judge them.

    Args:
        texts: that judge.
        fit: [M] int64, rows to fit to.
        judge: [K] int64, rows to answer.
        stop_cost: exits that cost more than they save are left out.
    """
    layers = tuple(range(1, texts.num_layers + 1))
    samples = FitSamples({"normalized_entropy": texts.entropy[fit]}, texts.agrees[fit, :-1], layers, stop_cost)
    fitted = samples.thresholds["normalized_entropy"]
    thresholds = torch.tensor([[of.get(layer, -torch.inf) for layer in layers[:-1]] for of in fitted])
    return by_threshold(texts.entropy[judge], range(texts.early), thresholds)
