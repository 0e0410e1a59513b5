"""Policies: how deep each sample goes. One engine runs any of them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_int, check_number, shorten
from geep_triton.engine.rules import ExitRule
from geep_triton.exits.agreement import allocate
from geep_triton.exits.fingerprint import tokenizer_fingerprint
from geep_triton.exits.table import VALUES, ExitTable
from geep_triton.modeling.model import ANSWER_HEADS, MultiExitBert
from geep_triton.ops.exit_scores import check_criterion
from geep_triton.ops.predict_exits import check_decision
from geep_triton.outputs import Tokens

POOLINGS = ("auto", "always", "never")
FIRST_SCORED = 0.05  # share of texts like it that have left where a sample is first scored


class OneExitWarning(UserWarning):
    """A policy that chooses each sample's exit answered all of them at one."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is known of a window before any layer runs.

    Attributes:
        stops: [N] int64, the layer at which each sample is first answered or scored.
        certain: [N] bool, samples that are answered there unscored; None: as the policy's rule says for all.
    """

    stops: torch.Tensor
    certain: torch.Tensor | None = None


class Policy(Protocol):
    """What the engine asks of a policy.

    Attributes:
        answer_head: "student" or "teacher", see `MultiExitBert.forward`.
        pooling: whether survivors of a batch wait for others until they fill a dense batch: "always"; "never", they go on in
            the batch that shrinks; "auto", as measured costs say.
    """

    @property
    def answer_head(self) -> str:
        """The head that answers."""

    @property
    def pooling(self) -> str:
        """What survivors do."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this policy cannot run on this model."""

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The first stop of each sample."""

    def rule(self, model: MultiExitBert) -> ExitRule | None:
        """Who leaves at a stop, and where the others stop next; None: everybody leaves at the first stop."""


def _same_stop(tokens: Tokens, layer: int) -> Plan:
    return Plan(torch.full((len(tokens),), layer, dtype=torch.int64))


@dataclass(frozen=True)
class FullDepth:
    """Every sample runs all layers."""

    answer_head = "student"
    pooling = "never"

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every model can."""

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The last layer for all."""
        return _same_stop(tokens, model.config.num_hidden_layers)

    def rule(self, model: MultiExitBert) -> None:
        """No scoring."""


@dataclass(frozen=True)
class ConstantDepth:
    """Every sample is answered after the same layer.

    Args:
        layer: one of the model's exits.
        answer_head: "student" or "teacher".
    """

    layer: int
    answer_head: str = "student"
    pooling = "never"

    def __post_init__(self) -> None:
        check_int("layer", self.layer, 1)
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """The layer must be an exit."""
        if self.layer not in model.config.exit_layers:
            raise ValueError(f"layer {self.layer} is not an exit of this model; exit_layers: {model.config.exit_layers}")

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """That layer for all."""
        return _same_stop(tokens, self.layer)

    def rule(self, model: MultiExitBert) -> None:
        """No scoring."""


class Scored:
    """What the policies share that score samples at exits on their way; their settings are `Threshold`'s."""

    answer_head = "student"

    def __post_init__(self) -> None:
        check_choice("pooling", self.pooling, POOLINGS)
        check_criterion(0.0, self.criterion, self.top_k)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs classes, and thresholds that fit the exits."""
        self.rule(model)

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The first scored exit for all."""
        return _same_stop(tokens, self.rule(model).next_stop(0, model.config.num_hidden_layers))

    def rule(self, model: MultiExitBert) -> ExitRule:
        """A score at every chosen exit."""
        layers = scored_layers(model, self.layers)
        thresholds = thresholds_of(model, self.threshold, self.criterion, self.top_k, layers)
        return ExitRule(thresholds, self.criterion, self.top_k)


@dataclass(frozen=True)
class Threshold(Scored):
    """A sample leaves at the first exit whose uncertainty is at or under the threshold (FastBERT, DeeBERT and others).

    Args:
        threshold: for every exit, or one per scored exit; None: the model's own `config.exit_thresholds`.
        criterion: the uncertainty; see `geep_triton.ops.exit_scores.score_exits`.
        top_k: of the criterion "top_k_entropy".
        layers: exits at which samples are scored; None: all but the last.
        pooling: "auto", "always" or "never"; see `Policy`.
    """

    threshold: float | Sequence[float] | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: tuple[int, ...] | None = None
    pooling: str = "auto"


@dataclass(frozen=True)
class Patience(Scored):
    """A sample leaves once `patience` exits in a row have agreed with the one before (PABEE, Zhou et al. 2020), or, with a
    threshold, have been sure (PCEE, Zhang et al. 2022).

    Args:
        patience: length of the streak, at least 1.
        threshold: None: PABEE; else the uncertainty at or under which an exit is sure, for every exit or one each.
        criterion, top_k, layers, pooling: as for `Threshold`.
    """

    patience: int
    threshold: float | Sequence[float] | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: tuple[int, ...] | None = None
    pooling: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("patience", self.patience, 1)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """A score at every chosen exit."""
        layers = scored_layers(model, self.layers)
        if self.threshold is None:
            return ExitRule(dict.fromkeys(layers, 0.0), self.criterion, self.top_k, "agreement", self.patience)
        thresholds = thresholds_of(model, self.threshold, self.criterion, self.top_k, layers)
        return ExitRule(thresholds, self.criterion, self.top_k, "confidence", self.patience)


@dataclass(frozen=True)
class Predicted:
    """Each sample runs to the exit that the model's exit table predicts from its tokens, in dense sorted batches (GEEP).

    Args:
        decision: "argmax", "mean", or a quantile in (0, 1]; see `geep_triton.ops.predict_exits.predict_exits`.
        values: the table's "counts", or its "learned" values.
        answer_head: "student" or "teacher".
    """

    decision: str | float = "argmax"
    values: str = "counts"
    answer_head: str = "student"
    pooling = "never"

    def __post_init__(self) -> None:
        check_decision(self.decision)
        check_choice("values", self.values, VALUES)
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs an exit table built with this tokenizer."""
        needs = "exit_values" if self.values == "learned" else None
        check_table(model, tokenizer, "predicted", needs)

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The predicted exits."""
        return Plan(table_of(model, "predicted").predict(tokens, self.decision, model.device, self.values).exits.cpu())

    def rule(self, model: MultiExitBert) -> None:
        """No scoring."""


@dataclass(frozen=True)
class Allocated:
    """Each sample runs to the exit whose learned agreement with the last one, less a price for every layer, is highest.

    Exactly one of the three is given; see `geep_triton.exits.agreement.allocate`.

    Args:
        price: of a layer, in agreement.
        mean_depth: the price at which texts like the table's take so many layers on average.
        agreement: the price at which so many of them get the last exit's answer.
        answer_head: "student" or "teacher".
    """

    price: float | None = None
    mean_depth: float | None = None
    agreement: float | None = None
    answer_head: str = "student"
    pooling = "never"

    def __post_init__(self) -> None:
        given = [name for name in ("price", "mean_depth", "agreement") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"allocated needs exactly one of price, mean_depth and agreement, got {given or 'none'}")
        check_price(self.price)
        if self.mean_depth is not None:
            check_number("mean_depth", self.mean_depth, 1.0)
        if self.agreement is not None:
            check_number("agreement", self.agreement, 0.0, 1.0)
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs an exit table built with this tokenizer, with learned agreement."""
        check_table(model, tokenizer, "allocated", "agreement")
        if self.price is None:
            model.exit_table.price_for(self.mean_depth, self.agreement)

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The exits worth their layers."""
        table, price = table_of(model, "allocated"), self.price
        if price is None:
            price = table.price_for(self.mean_depth, self.agreement)
        return Plan(allocate(table.predict_agreement(tokens, model.device), table.exit_layers, price))

    def rule(self, model: MultiExitBert) -> None:
        """No scoring."""


@dataclass(frozen=True)
class Verified(Scored):
    """Each sample runs unscored to an exit that the table plans, is scored there, and goes on while unsure, pooled with others.

    Args:
        threshold, criterion, top_k, layers, pooling: as for `Threshold`.
        decision: which exit that is, as for `Predicted`; a quantile: the first by which this share of texts like it has left.
            The default is about what scoring costs, in layers: scoring earlier saves less than it takes, and later what it
            could save is spent. Texts whose tokens tell nothing are then planned as `Threshold` plans all.
        values: as for `Predicted`.
        price: instead of those, as for `Allocated`.
        earlier: a sample that leaves exactly at its predicted exit with less than this probability is scored one exit earlier;
            0: none is. Not with `price`.
        certain: one that has left by that exit with at least this probability is answered there unscored; above 1: none is.
            Give a `decision` that plans deep with it. With `price` the probabilities are those of agreeing with the last exit
            by then.
    """

    threshold: float | Sequence[float] | None = None
    decision: str | float = FIRST_SCORED
    values: str = "counts"
    price: float | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: tuple[int, ...] | None = None
    earlier: float = 0.0
    certain: float = 2.0
    pooling: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decision(self.decision)
        check_choice("values", self.values, VALUES)
        check_price(self.price)
        check_number("earlier", self.earlier, 0.0, 1.0)
        check_number("certain", self.certain, 0.0)
        if self.earlier and self.price is not None:
            raise ValueError(
                f"earlier={self.earlier:g} is of predicted exits, but a price plans by agreement: give one of them"
            )

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs an exit table built with this tokenizer, classes, and thresholds that fit the exits."""
        needs = "agreement" if self.price is not None else "exit_values" if self.values == "learned" else None
        check_table(model, tokenizer, "verified", needs)
        self.rule(model)

    def plan(self, model: MultiExitBert, tokens: Tokens) -> Plan:
        """The predicted exits, moved to where samples are scored."""
        table = table_of(model, "verified")
        if self.price is None:
            predicted = table.predict(tokens, self.decision, model.device, self.values)
            done_by, exits = predicted.probabilities.cpu().cumsum(1), predicted.exits.cpu()
        else:
            done_by = table.predict_agreement(tokens, model.device)
            exits = allocate(done_by, table.exit_layers, self.price)
        allowed = torch.tensor([*self.rule(model).thresholds, model.config.num_hidden_layers])
        layers = torch.tensor(model.config.exit_layers)
        at = torch.searchsorted(layers, exits)[:, None]
        exactly = torch.diff(done_by, dim=1, prepend=torch.zeros(len(tokens), 1))
        share, unsure = done_by.gather(1, at)[:, 0], exactly.gather(1, at)[:, 0] < self.earlier
        stop = torch.searchsorted(allowed, exits)
        stop = torch.where(unsure, (stop - 1).clamp(min=0), stop)
        return Plan(allowed[stop], (share >= self.certain) & ~unsure if self.certain <= 1 else None)


def scored_layers(model: MultiExitBert, layers: Sequence[int] | None) -> list[int]:
    """The early exits at which samples are scored; ValueError unless they are exits of this model, which has classes."""
    if model.config.num_labels < 2:
        raise ValueError(
            "exit rules need classes: no uncertainty is defined for a regression model (num_labels=1), "
            "which runs at full or constant depth"
        )
    early = model.config.exit_layers[:-1]
    if layers is None:
        return early
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"layers must be a list of ints, got {shorten(layers)} of type {type(layers).__name__}")
    if not layers or list(layers) != [layer for layer in early if layer in layers]:
        raise ValueError(f"layers must be some of this model's early exits {early}, ascending, got {list(layers)}")
    return list(layers)


def thresholds_of(
    model: MultiExitBert, threshold: float | Sequence[float] | None, criterion: str, top_k: int, layers: Sequence[int]
) -> dict[int, float]:
    """Layer -> threshold; the model's own where none is given. ValueError where they do not fit."""
    if threshold is None:
        if criterion != "normalized_entropy":
            raise ValueError(f"criterion {criterion!r} needs a threshold: config.exit_thresholds are of normalized_entropy")
        threshold = model.config.exit_thresholds
        if threshold is None:
            raise ValueError("this policy needs a threshold: pass one, or set model.config.exit_thresholds")
        if isinstance(threshold, (list, tuple)):
            by_layer = dict(zip(model.config.exit_layers[:-1], threshold, strict=True))
            threshold = [by_layer[layer] for layer in layers]
    values = list(threshold) if isinstance(threshold, (list, tuple)) else [threshold] * len(layers)
    if len(values) != len(layers):
        raise ValueError(f"threshold must be one number, or one per scored exit {list(layers)}, got {len(values)}")
    for value in values:
        check_criterion(value, criterion, top_k)
    return dict(zip(layers, values, strict=True))


def check_price(price: float | None) -> None:
    """Raise unless `price` is None or a number from 0 to 1."""
    if price is not None:
        check_number("price", price, 0.0, 1.0)


def table_of(model: MultiExitBert, policy: str) -> ExitTable:
    """The model's exit table; ValueError where it has none, or none any more."""
    if model.exit_table is None:
        raise ValueError(f"policy {policy!r} needs an exit table: model.exit_table = build_exit_table(model, ...)")
    return model.exit_table


def check_table(model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, policy: str, needs: str | None) -> None:
    """Raise ValueError unless the model has an exit table that fits it and this tokenizer, and the learned values needed."""
    table, config = table_of(model, policy), model.config
    table.check_fits(config.vocab_size, config.exit_layers, tokenizer_fingerprint(tokenizer))
    if needs is not None and getattr(table, needs) is None:
        raise ValueError(f"policy {policy!r} needs learned values: {table.how_to_learn(needs)}")


# The short form's name -> policy, and the field that the value behind the colon is for.
NAMES: dict[str, tuple[type, str | None]] = {
    "full": (FullDepth, None),
    "constant": (ConstantDepth, "layer"),
    "threshold": (Threshold, "threshold"),
    "patience": (Patience, "patience"),
    "predicted": (Predicted, "decision"),
    "allocated": (Allocated, "price"),
    "verified": (Verified, "threshold"),
}
POLICIES = (
    "full, constant:LAYER, threshold, threshold:T, threshold:T/T/..., patience:N, predicted, predicted:mean, predicted:Q, "
    "allocated:PRICE, verified, verified:T; further settings behind commas, as in threshold:0.2,criterion=margin,layers=2/4"
)


def parse_policy(text: str | Policy) -> Policy:
    """A policy from its short form, e.g. "full", "constant:3", "threshold:0.3", "verified:0.2,decision=0.9"; or as it is.

    Raises:
        ValueError: not such a form; the error lists the known ones. TypeError: neither a text nor a policy.
    """
    if not isinstance(text, str):
        if not all(hasattr(text, name) for name in ("answer_head", "pooling", "check", "plan", "rule")):
            raise TypeError(f"policy must be a policy or its short form, got {shorten(text)}; known: {POLICIES}")
        return text
    head, *settings = text.split(",")
    name, _, value = head.partition(":")
    if name not in NAMES:
        raise ValueError(f"unknown policy {shorten(text)}; known: {POLICIES}")
    policy, main_field = NAMES[name]
    pairs = [setting.partition("=")[::2] for setting in settings]
    if value:
        pairs.insert(0, (main_field, value))
    types = typing.get_type_hints(policy)
    fields = {field.name for field in dataclasses.fields(policy)}
    try:
        for key, _ in pairs:
            if key not in fields:
                raise ValueError(f"it has no setting {key!r}" if key else "it takes no value")
        return policy(**{key: _read(content, types[key]) for key, content in pairs})
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy {shorten(text)}: {error}; known: {POLICIES}") from error


def format_policy(policy: Policy) -> str:
    """The short form of a policy, from which `parse_policy` makes an equal one. TypeError where it is none of ours."""
    names = [name for name, (kind, _) in NAMES.items() if type(policy) is kind]
    if not names:
        raise TypeError(f"policy {shorten(policy)} has no short form; those that have: {', '.join(NAMES)}")
    name, main_field = names[0], NAMES[names[0]][1]
    values = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    defaults = {field.name: field.default for field in dataclasses.fields(policy)}
    changed = {key: _write(value) for key, value in values.items() if value != defaults[key]}
    head = f"{name}:{changed.pop(main_field)}" if main_field in changed else name
    return ",".join([head, *(f"{key}={value}" for key, value in changed.items())])


def _write(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "/".join(repr(float(item) if isinstance(item, float) else int(item)) for item in value)
    return str(value)


def _read(text: str, kind: Any) -> Any:
    """A setting's value from its text: numbers, several of them with slashes between, else a word."""
    choices = typing.get_args(kind) or (kind,)
    if tuple[int, ...] in choices:
        return tuple(int(layer) for layer in text.split("/"))
    if kind is int:
        return int(text)
    try:
        return tuple(map(float, text.split("/"))) if "/" in text else float(text)
    except ValueError:
        if str in choices:
            return text
        raise ValueError(f"{text!r} is no number") from None
