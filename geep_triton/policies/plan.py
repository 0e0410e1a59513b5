"""One plan for each sample after an early exit: where it is answered next, without a look in between (*our addition*)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_int
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.leave import REGROUPS
from geep_triton.policies.risk import forecasts_of
from geep_triton.policies.start import same_for_all
from geep_triton.table.allocate import allocate, check_budget
from geep_triton.table.forecasts import Forecasts
from geep_triton.tokens.ragged import Tokens, to_device


@dataclass(frozen=True)
class PlannedAfter:
    """After an early exit each sample gets the exit at which its forecast agreement, minus a price for every layer, is highest.

    That may be this very exit. GEEP predicts exits from tokens, sorts, and runs dense batches. This does so from the answer of
    an early exit. Exactly one of price, mean_depth and agreement is given.

    Args:
        layer: the early exit after which exits are planned.
        price: price of a layer, in agreement, 0..1.
        mean_depth: mean number of layers on texts like the table's, which gives the price.
        agreement: share of such texts that get the last exit's answer, 0..1, which gives the price. It is observed, not
            promised; `geep_triton.calibrate` promises.
        regroup: as for `geep_triton.policies.leave.Sure`. It says how samples go on after the plan.

    Raises:
        ValueError: not exactly one of the three is given, or a setting is unknown or out of range.
        TypeError: a setting has another type.
    """

    layer: int
    price: float | None = None
    mean_depth: float | None = None
    agreement: float | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        check_int("layer", self.layer, 1)
        check_budget("planned", self.price, self.mean_depth, self.agreement)
        check_choice("regroup", self.regroup, REGROUPS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError unless the layer is an early exit, and the exit table has forecasts that allow the budget."""
        self.plan(model)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The layer after which exits are planned, for all samples: [N] int64."""
        return same_for_all(tokens, self.layer)

    def plan(self, model: MultiExitBert) -> Plan:
        """How exits are planned on this model. ValueError if they cannot be."""
        early = model.config.exit_layers[:-1]
        if self.layer not in early:
            raise ValueError(f"layer must be one of this model's early exits {early}, got {self.layer}")
        forecasts, exit_, layers = forecasts_of(model, "planned"), early.index(self.layer), tuple(model.config.exit_layers)
        price = self.price
        if price is None:
            price = forecasts.price_for(exit_, layers, self.mean_depth, self.agreement)
        return Plan(forecasts, exit_, layers, price)


@dataclass(frozen=True)
class Plan:
    """How exits are planned on a model.

    Attributes:
        forecasts: from the answers at an exit.
        exit_: index of this exit.
        exit_layers: the layers of all exits.
        price: of a layer, in agreement.
        scored: layers, ascending, the last one included. Who does not leave at once goes on to the first of them that is at or
            after the planned exit. None: to the planned exit itself.
    """

    forecasts: Forecasts
    exit_: int
    exit_layers: tuple[int, ...]
    price: float
    scored: tuple[int, ...] | None = None

    @property
    def layer(self) -> int:
        """The layer after which exits are planned."""
        return self.exit_layers[self.exit_]

    def stops(self, logits: torch.Tensor, ran: torch.Tensor | None = None) -> torch.Tensor:
        """Where each sample is answered, or scored next. Who stops at the layer of the plan is answered there.

        Args:
            logits: [B, C], the answers at the exit; 0 for samples that skipped its layer.
            ran: [B] bool, who ran the layer of the exit, on the device of the logits. The others cannot leave there. None: all
                ran it.

        Returns:
            [B] int64, layers, on the device of the logits. It is the last layer where logits are not finite, or so
            large that the forecast is no number.
        """
        agreement = self.forecasts.agreement(self.exit_, logits)
        unknown = ~logits.isfinite().all(1) | agreement.isnan().any(1)  # a net overflows where logits are huge
        if ran is not None:
            agreement[:, 0].masked_fill_(~ran, -torch.inf)
        stops = allocate(agreement, self.exit_layers[self.exit_ :], self.price).masked_fill(unknown, self.exit_layers[-1])
        if self.scored is None:
            return stops
        scored = to_device(torch.tensor(self.scored), stops.device)
        return torch.where(stops == self.layer, stops, scored[torch.searchsorted(scored, stops)])
