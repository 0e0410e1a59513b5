"""Where a sample is first looked at: the first of the three questions that a policy answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_int, check_number
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.predict_exits import check_decision
from geep_triton.table.allocate import allocate
from geep_triton.table.exit_table import VALUES, ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.ragged import Tokens


class Start(Protocol):
    """What a policy asks of its start. Any object that has these two methods is one."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this start cannot be had on this model."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64 on the host: an exit's layer for each of the N samples."""


@dataclass(frozen=True)
class LastLayer:
    """Every sample runs all layers."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every model can."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, the last layer for all."""
        return _same_for_all(tokens, model.config.num_hidden_layers)


@dataclass(frozen=True)
class AtLayer:
    """Every sample is first looked at after the same layer.

    Args:
        layer: one of the model's exits.
    """

    layer: int

    def __post_init__(self) -> None:
        check_int("layer", self.layer, 1)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError unless the layer is an exit of this model."""
        if self.layer not in model.config.exit_layers:
            raise ValueError(f"layer {self.layer} is not an exit of this model; exit_layers: {model.config.exit_layers}")

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, that layer for all."""
        return _same_for_all(tokens, self.layer)


@dataclass(frozen=True)
class FirstExit:
    """Every sample is first looked at where the policy's `leave` first scores anybody."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every model can; `leave` says whether it can score."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, the first exit for all; the policy moves them on to the first exit that is scored."""
        return _same_for_all(tokens, model.config.exit_layers[0])


@dataclass(frozen=True)
class TableExit:
    """Each sample is first looked at where the model's exit table predicts from its tokens that it leaves (GEEP).

    Args:
        decision: "argmax", "mean", or a quantile in (0, 1]; see `geep_triton.ops.predict_exits.predict_exits`. None: as
            `ExitTable.decide` says, by learned agreement where the table has learned it, else by "argmax". With a `leave` the
            quantile .05 is a good choice: it is about what scoring costs, in layers. Scoring earlier saves less than it
            takes, and scoring later gives away what could be saved. Texts whose tokens tell nothing then start where
            `FirstExit` starts all.
        values: the table's "counts", or its "learned" values.
    """

    decision: str | float | None = None
    values: str = "counts"

    def __post_init__(self) -> None:
        if self.decision is not None:
            check_decision(self.decision)
        check_choice("values", self.values, VALUES)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError unless the model has an exit table that fits, with learned values where they are asked for."""
        _check_table(model, tokenizer, "predicted", "exits" if self.values == "learned" else None)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, the predicted exits."""
        table = _table_of(model, "predicted")
        if self.decision is None and self.values == "counts":
            return table.decide(tokens, model.device)
        return table.predict(tokens, self.decision or "argmax", model.device, self.values).exits.cpu()


@dataclass(frozen=True)
class TableAgreement:
    """Each sample is first looked at where its learned agreement with the last exit, less a price for every layer, is highest.

    Exactly one of the three is given; see `geep_triton.table.allocate.allocate`.

    Args:
        price: of a layer, in agreement.
        mean_depth: the price at which texts like the table's take so many layers on average.
        agreement: the price at which so many of them get the last exit's answer.
    """

    price: float | None = None
    mean_depth: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("price", "mean_depth", "agreement") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"allocated needs exactly one of price, mean_depth and agreement, got {given or 'none'}")
        if self.price is not None:
            check_number("price", self.price, 0.0, 1.0)
        if self.mean_depth is not None:
            check_number("mean_depth", self.mean_depth, 1.0)
        if self.agreement is not None:
            check_number("agreement", self.agreement, 0.0, 1.0)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError unless the model has an exit table that fits, with learned agreement that allows the budget."""
        _check_table(model, tokenizer, "allocated", "agreement")
        self._price(model.exit_table)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, the exits that are worth their layers."""
        table = _table_of(model, "allocated")
        return allocate(table.predict_agreement(tokens, model.device), table.exit_layers, self._price(table))

    def _price(self, table: ExitTable) -> float:
        return table.price_for(self.mean_depth, self.agreement) if self.price is None else self.price


def _same_for_all(tokens: Tokens, layer: int) -> torch.Tensor:
    return torch.full((len(tokens),), layer, dtype=torch.int64)


def _table_of(model: MultiExitBert, policy: str) -> ExitTable:
    """The model's exit table; ValueError where it has none, or none any more."""
    if model.exit_table is None:
        raise ValueError(f"policy {policy!r} needs an exit table: model.exit_table = build_exit_table(model, ...)")
    return model.exit_table


def _check_table(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, policy: str, needs: str | None) -> None:
    """Raise ValueError unless the model has an exit table that fits it and this tokenizer, and the learned values needed."""
    table, config = _table_of(model, policy), model.config
    table.check_fits(config.vocab_size, config.exit_layers, tokenizer_fingerprint(tokenizer))
    if needs is not None and needs not in table.learned:
        raise ValueError(f"policy {policy!r} needs learned values: {table.how_to_learn(needs)}")
