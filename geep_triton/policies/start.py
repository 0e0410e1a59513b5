"""Where a sample is first looked at: the first of the three questions of a policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_int
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.predict_exits import check_statistic
from geep_triton.table.allocate import allocate, check_budget
from geep_triton.table.exit_table import VALUES, ExitTable
from geep_triton.table.fingerprint import tokenizer_fingerprint
from geep_triton.tokens.ragged import Tokens


class Start(Protocol):
    """The methods that a start must have. Any object with these two methods is a start."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError if this start cannot be used with this model, and with its tokenizer if that is known."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The layer of an exit for each of the N samples: [N] int64 on the host."""


@dataclass(frozen=True)
class LastLayer:
    """Every sample runs all layers."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Every model has a last layer."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The last layer for all samples: [N] int64."""
        return same_for_all(tokens, model.config.num_hidden_layers)


@dataclass(frozen=True)
class AtLayer:
    """Every sample is first looked at after the same layer.

    Args:
        layer: one of the model's exits.

    Raises:
        ValueError: the layer is below 1.
        TypeError: the layer is not an int.
    """

    layer: int

    def __post_init__(self) -> None:
        check_int("layer", self.layer, 1)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError unless the layer is an exit of this model."""
        if self.layer not in model.config.exit_layers:
            raise ValueError(f"layer {self.layer} is not an exit of this model; exit_layers: {model.config.exit_layers}")

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """This layer for all samples: [N] int64."""
        return same_for_all(tokens, self.layer)


@dataclass(frozen=True)
class FirstExit:
    """Every sample is first looked at where the policy's `leave` first scores samples."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Every model has a first exit. `leave` checks whether it can score there."""

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The first exit for all samples: [N] int64. The policy moves it on to the first exit with a score."""
        return same_for_all(tokens, model.config.exit_layers[0])


@dataclass(frozen=True)
class TableExit:
    """Each sample is first looked at where the model's exit table predicts from its tokens that it leaves (GEEP).

    Args:
        statistic: "argmax", "mean", or a quantile in (0, 1], see `geep_triton.ops.predict_exits.predict_exits`. None: as
            `ExitTable.decide`, which uses learned agreement if the table has it, else "argmax". With a `leave`, the quantile
            .05 is a good choice, because it is about the cost of a score in layers: an earlier score saves less than it costs,
            and a later one loses savings. Texts whose tokens carry no information then start where `FirstExit` starts.
        values: the table's "counts", or its "learned" values.

    Raises:
        ValueError: the statistic or the values are unknown.
        TypeError: the statistic is neither a string nor a number.
    """

    statistic: str | float | None = None
    values: str = "counts"

    def __post_init__(self) -> None:
        if self.statistic is not None:
            check_statistic(self.statistic)
        check_choice("values", self.values, VALUES)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError unless the model has an exit table that fits it, with learned values if they are needed."""
        _check_table(model, tokenizer, "predicted", "exits" if self.values == "learned" else None)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The predicted exits: [N] int64."""
        table = _table_of(model, "predicted")
        if self.statistic is None and self.values == "counts":
            return table.decide(tokens, model.device)
        return table.predict(tokens, self.statistic or "argmax", model.device, self.values).exits.cpu()


@dataclass(frozen=True)
class TableAgreement:
    """Each sample is first looked at where its learned agreement with the last exit, minus a price for every layer, is highest.

    Exactly one of the three arguments is given. See `geep_triton.table.allocate.allocate`.

    Args:
        price: price of a layer, in agreement, 0..1.
        mean_depth: mean number of layers on texts like the table's, which gives the price.
        agreement: share of such texts that get the last exit's answer, 0..1, which gives the price.

    Raises:
        ValueError: not exactly one argument is given, or it is out of range.
        TypeError: an argument is not a number.
    """

    price: float | None = None
    mean_depth: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        check_budget("allocated", self.price, self.mean_depth, self.agreement)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError unless the model has an exit table that fits it, with learned agreement that allows the budget."""
        _check_table(model, tokenizer, "allocated", "agreement")
        self._price(_table_of(model, "allocated"))

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The exits with the best trade-off of agreement and layers: [N] int64."""
        table = _table_of(model, "allocated")
        return allocate(table.predict_agreement(tokens, model.device), table.exit_layers, self._price(table))

    def _price(self, table: ExitTable) -> float:
        return table.price_for(self.mean_depth, self.agreement) if self.price is None else self.price


def same_for_all(tokens: Tokens, layer: int) -> torch.Tensor:
    """The same layer for every sample: [N] int64."""
    return torch.full((len(tokens),), layer, dtype=torch.int64)


def _table_of(model: MultiExitBert, policy: str) -> ExitTable:
    """The model's exit table. ValueError if it has none."""
    if model.exit_table is None:
        raise ValueError(f"policy {policy!r} needs an exit table: model.exit_table = build_exit_table(model, ...)")
    return model.exit_table


def _check_table(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None, policy: str, needs: str | None) -> None:
    """Raise ValueError unless the model's exit table fits it and this tokenizer and has the needed learned values."""
    table, config = _table_of(model, policy), model.config
    fingerprint = None if tokenizer is None else tokenizer_fingerprint(tokenizer)
    table.check_fits(config.vocab_size, config.exit_layers, fingerprint)
    if needs is not None and needs not in table.learned:
        raise ValueError(f"policy {policy!r} needs learned values: {table.how_to_learn(needs)}")
