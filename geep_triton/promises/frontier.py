"""Policies by the exit table's forecasts: which exits and settings pay, judged by the texts that the table held out.

No calibration text is needed for that, so that all of them may judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from geep_triton.policies.plan import PlannedAfter
from geep_triton.policies.policy import Policy
from geep_triton.policies.risk import LowRisk
from geep_triton.policies.start import FirstExit
from geep_triton.promises.exits_that_pay import exits_that_pay
from geep_triton.table.allocate import allocate
from geep_triton.table.forecasts import Forecasts

RISKS = torch.logspace(-3.5, -0.2, 50).tolist()
PRICES = torch.logspace(-4.5, -0.3, 50).tolist()
MOST_CHOSEN = 2  # exits of which all choices are tried; of more exits those are dropped that do not pay
SETTINGS = 60
CAUTIOUS = torch.logspace(-2.5, -0.25, 10).tolist()  # parts of a risk or price


@dataclass(frozen=True)
class Candidate:
    """A policy on the held-out texts.

    Attributes:
        make: makes the policy at a risk or price.
        value: the risk or price.
        agreement: share of texts that get the last exit's answer.
        cost: mean layers of a text, with the stops that it makes.
    """

    make: Callable[[float], Policy]
    value: float
    agreement: float
    cost: float

    @property
    def policy(self) -> Policy:
        """The policy."""
        return self.make(self.value)


def risk_policies(forecasts: Forecasts, layers: Sequence[int], stop_cost: float) -> list[Policy]:
    """Leaves by risk at all exits, and at fewer that pay, from cautious to bold.

    Args:
        forecasts: of the exit table.
        layers: of the E exits.
        stop_cost: of a sample at an exit, in layers.
    """
    return _from_cautious_to_bold(_by_risk(forecasts, layers, stop_cost))


def planned_policies(forecasts: Forecasts, layers: Sequence[int], stop_cost: float) -> list[Policy]:
    """Plans after each early exit, at each price, from cautious to bold. Arguments are as for `risk_policies`."""
    return _from_cautious_to_bold(_by_price(forecasts, layers, stop_cost))


def _from_cautious_to_bold(candidates: Iterable[Candidate]) -> list[Policy]:
    """The frontier, and before it the most cautious of it at parts of its value: where few texts were held out it is bold."""
    chosen = frontier(candidates)
    first = chosen[0]
    return [first.make(first.value * part) for part in CAUTIOUS] + [candidate.policy for candidate in chosen]


def frontier(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates that no other beats in both agreement and cost, from cautious to bold, at most `SETTINGS` of them."""
    kept: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda one: (one.cost, -one.agreement)):
        if not kept or candidate.agreement > kept[-1].agreement:
            kept.append(candidate)
    step = max(1.0, (len(kept) - 1) / (SETTINGS - 1))
    return [kept[round(index * step)] for index in range(min(len(kept), SETTINGS))][::-1]


def _by_risk(forecasts: Forecasts, layers: Sequence[int], stop_cost: float) -> Iterator[Candidate]:
    agreement, agrees = forecasts.held_out_agreement, forecasts.held_out_agrees
    early = len(layers) - 1
    risks = torch.stack([1 - agreement[exit_, :, exit_] for exit_ in range(early)], 1)  # [M, E - 1], infinite where skipped
    levels = torch.tensor(RISKS)
    few = [
        list(exits) for size in range(1, min(MOST_CHOSEN, early) + 1) for exits in itertools.combinations(range(early), size)
    ]
    for exits in few:
        yield from _at_levels(agrees, layers, stop_cost, risks, levels, exits)
    if early > MOST_CHOSEN:
        yield from _at_levels(agrees, layers, stop_cost, risks, levels, list(range(early)))
        for level in levels:
            paying = exits_that_pay(risks <= level, layers, stop_cost, list(range(early)), fewest=1)
            yield from _at_levels(agrees, layers, stop_cost, risks, level[None], paying)


def _at_levels(
    all_agree: torch.Tensor,
    layers: Sequence[int],
    stop_cost: float,
    risks: torch.Tensor,
    levels: torch.Tensor,
    exits: Sequence[int],
) -> Iterator[Candidate]:
    """Leaves at some exits, at each of several levels of the risk. `risks` [M, E - 1], `all_agree` [M, E] are of all exits."""
    risks = risks[:, exits]
    leaves = risks <= levels[:, None, None]  # [K, M, exits]
    stays = ~leaves
    first = torch.cat([leaves, torch.ones_like(leaves[..., :1])], 2).int().argmax(2)  # [K, M]
    places = torch.tensor([*exits, len(layers) - 1])
    answered = places[first]
    agrees = all_agree[torch.arange(len(risks)), answered].double().mean(1)
    # A text is scored at every exit up to its own whose layer it did not skip.
    reached = torch.cat([torch.ones_like(stays[..., :1]), stays[..., :-1]], 2).int().cumprod(2)
    stops = (reached * risks.isfinite()).sum(2)
    cost = (torch.tensor(layers)[answered] + stop_cost * stops).double().mean(1)
    make = partial(_leave, tuple(layers[exit_] for exit_ in exits))
    for level, share, mean in zip(levels.tolist(), agrees.tolist(), cost.tolist(), strict=True):
        yield Candidate(make, level, share, mean)


def _by_price(forecasts: Forecasts, layers: Sequence[int], stop_cost: float) -> Iterator[Candidate]:
    numbers, all_agree = torch.tensor(layers), forecasts.held_out_agrees
    for exit_, agreement in enumerate(forecasts.held_out_agreement):
        for price in PRICES:
            stops = allocate(agreement[:, exit_:], tuple(layers[exit_:]), price)
            answered = torch.searchsorted(numbers, stops)
            agrees = all_agree.gather(1, answered[:, None])
            cost = float(stops.double().mean()) + stop_cost
            yield Candidate(partial(_plan, layers[exit_]), price, float(agrees.double().mean()), cost)


def _leave(layers: tuple[int, ...], risk: float) -> Policy:
    return Policy(FirstExit(), LowRisk(risk, layers=layers))


def _plan(layer: int, price: float) -> Policy:
    return Policy(PlannedAfter(layer, price))
