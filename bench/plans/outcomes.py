"""What settings of a policy do with recorded texts: where each text is answered, and how often it is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

HEAD_COST = 0.1  # of an answer without a look, in layers: a head alone; less where even a look costs less


@dataclass(frozen=True, eq=False)
class Outcome:
    """How S settings answer N texts.

    Attributes:
        exits: [S, N] uint8, index of the exit where a text is answered.
        stops: [S, N] uint8, how often it was looked at, that is, scored or planned.
        unscored: [S, N] bool, whether it was answered by a head without a look at its answer.
    """

    exits: torch.Tensor
    stops: torch.Tensor
    unscored: torch.Tensor

    def __len__(self) -> int:
        return len(self.exits)

    def select(self, settings: torch.Tensor) -> Outcome:
        """The same of some settings, in that order."""
        return Outcome(self.exits[settings], self.stops[settings], self.unscored[settings])

    def wrong(self, agrees: torch.Tensor) -> torch.Tensor:
        """[S, N] bool, whether the answer differs from that of the last exit.

        Args:
            agrees: [N, L] bool, whether each exit gives the last exit's answer.
        """
        return ~agrees.T.gather(0, self.exits.long())

    def means(self, agrees: torch.Tensor) -> Means:
        """Means over the texts, [S] each."""
        share = 1 / self.exits.shape[1]
        return Means(
            1 - share * self.wrong(agrees).sum(1).double(),
            1 + share * self.exits.sum(1).double(),
            share * self.stops.sum(1).double(),
            share * self.unscored.sum(1).double(),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Outcome]) -> Outcome:
        """All settings, in order."""
        return cls(
            torch.cat([part.exits for part in parts]),
            torch.cat([part.stops for part in parts]),
            torch.cat([part.unscored for part in parts]),
        )


class Means(NamedTuple):
    """Means over texts: agreement with the last exit, layers, looks, and answers without one."""

    agreement: torch.Tensor
    layers: torch.Tensor
    stops: torch.Tensor
    unscored: torch.Tensor

    def cost(self, stop_cost: float) -> torch.Tensor:
        """In layers, of which a look takes `stop_cost`."""
        return self.layers + stop_cost * self.stops + min(stop_cost, HEAD_COST) * self.unscored


def at_exits(exits: torch.Tensor, looks: int) -> Outcome:
    """Texts that are sent to an exit [S, N] and answered there unscored, after so many looks."""
    return Outcome(exits.to(torch.uint8), torch.full_like(exits, looks, dtype=torch.uint8), torch.ones_like(exits).bool())


def constant(samples: int, num_layers: int) -> Outcome:
    """Every early exit for all texts, from the latest to the first."""
    return at_exits(torch.arange(num_layers - 2, -1, -1)[:, None].expand(-1, samples), 0)


def first_agreeing(agrees: torch.Tensor) -> Outcome:
    """The first exit that agrees with the last, which nobody knows before: no policy can be cheaper."""
    return at_exits(agrees.int().argmax(1)[None], 0)


def by_threshold(
    scores: torch.Tensor, exits: Sequence[int], thresholds: torch.Tensor, starts: torch.Tensor | None = None
) -> Outcome:
    """Texts are looked at in some exits in turn, and leave at the first where their score is at most the threshold.

    Args:
        scores: [N, L - 1], low where an answer is sure.
        exits: indices of the exits, ascending.
        thresholds: [S], or [S, L - 1] with one for each exit, where minus infinity leaves out the exit.
        starts: [N], index of the exit at which each is looked at first. None: the first one.
    """
    settings, (samples, early) = len(thresholds), scores.shape
    limits = thresholds if thresholds.ndim == 2 else thresholds[:, None].expand(-1, early)
    found = torch.full((settings, samples), early, dtype=torch.uint8)
    stops = torch.zeros(settings, samples, dtype=torch.uint8)
    open_ = torch.ones(settings, samples, dtype=torch.bool)
    for index in exits:
        looked = open_ & (limits[:, index] > -torch.inf)[:, None]
        if starts is not None:
            looked &= starts <= index
        stops += looked
        leaves = looked & (scores[:, index] <= limits[:, index, None])
        found.masked_fill_(leaves, index)
        open_ ^= leaves
    return Outcome(found, stops, open_)


def best_exits(agreement: torch.Tensor, first: int, prices: torch.Tensor) -> torch.Tensor:
    """[S, N] uint8, the exit of the highest value, which is its agreement minus the price of its layers; the first of equals.

    Args:
        agreement: [N, E], the probability that each exit from index `first` on gives the last exit's answer.
        first: index of the first exit.
        prices: [S], of a layer.
    """
    best = agreement[:, 0] - prices[:, None] * (first + 1)
    found = torch.full(best.shape, first, dtype=torch.uint8)
    for place in range(1, agreement.shape[1]):
        value = agreement[:, place] - prices[:, None] * (first + place + 1)
        better = value > best
        found.masked_fill_(better, first + place)
        best = torch.where(better, value, best)
    return found


def planned(agreement: torch.Tensor, first: int, prices: torch.Tensor) -> Outcome:
    """Texts are looked at once, in the exit of index `first`, and go from there to the exit of the highest value.

    Args:
        agreement: [N, L - first], as that exit forecasts it.
        first: the exit; who is answered there has been looked at.
        prices: [S].
    """
    exits = best_exits(agreement, first, prices)
    return Outcome(exits, torch.ones_like(exits), exits > first)


def planned_ahead(agreement: torch.Tensor, prices: torch.Tensor) -> Outcome:
    """Texts are planned once before the first layer, and nobody is scored."""
    return at_exits(best_exits(agreement, 0, prices), 1)


def replanned(agreement: torch.Tensor, first: int, ratio: float, thresholds: torch.Tensor) -> Outcome:
    """Texts are looked at in an exit, leave where the risk is low, and else go to the later exit of the highest value.

    They are looked at there again, unless it is the last one.

    Args:
        agreement: [N, L - 1, L]: of each exit, as each early exit forecasts it.
        first: the exit of the first look.
        ratio: price of a layer, over the threshold.
        thresholds: [S], of the risk.
    """
    samples, early, _ = agreement.shape
    place = torch.full((len(thresholds), samples), first, dtype=torch.uint8)
    stops = torch.zeros_like(place)
    scored = torch.zeros_like(place, dtype=torch.bool)
    for index in range(first, early):
        here = place == index
        stops += here
        leaves = here & (1 - agreement[:, index, index] <= thresholds[:, None])
        scored |= leaves
        later = best_exits(agreement[:, index, index + 1 :], index + 1, ratio * thresholds)
        place = torch.where(here & ~leaves, later, place)
    return Outcome(place, stops, ~scored)


def frontier(means: Means, stop_cost: float, least: float) -> torch.Tensor:
    """Settings that no other one beats in both agreement and cost, from cautious to bold: [K >= 1] int64.

    Args:
        means: of the settings.
        stop_cost: see `Means.cost`.
        least: settings that agree less are left out, but not the one that agrees most.
    """
    cost = means.cost(stop_cost)
    order = torch.arange(len(cost))[means.agreement >= min(least, float(means.agreement.max()))]
    order = order[means.agreement[order].argsort(descending=True, stable=True)]
    order = order[cost[order].argsort(stable=True)]  # the cheapest first, of equals the one that agrees most
    agreement = means.agreement[order]
    before = torch.cat([agreement.new_full((1,), -torch.inf), agreement.cummax(0).values[:-1]])
    return order[agreement > before].flip(0)
