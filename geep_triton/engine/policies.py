"""Policies: how deep each sample goes. One engine runs any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_int, shorten
from geep_triton.config import check_thresholds
from geep_triton.exits.fingerprint import tokenizer_fingerprint
from geep_triton.modeling.model import ANSWER_HEADS, MultiExitBert
from geep_triton.ops.predict_exits import check_decision
from geep_triton.outputs import Tokens


class Policy(Protocol):
    """What the engine asks of a policy.

    Attributes:
        answer_head: "student" or "teacher", see `MultiExitBert.forward`.
    """

    @property
    def answer_head(self) -> str:
        """The head that answers."""

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this policy cannot run on this model."""

    def plan(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64, the layer at which each sample is answered at the latest; known before any layer runs."""

    def thresholds(self, model: MultiExitBert) -> dict[int, float]:
        """Exits on the way -> uncertainty at or under which a sample leaves there; empty: no checks."""


def _same_depth(tokens: Tokens, layer: int) -> torch.Tensor:
    return torch.full((len(tokens),), layer, dtype=torch.int64)


@dataclass(frozen=True)
class FullDepth:
    """Every sample runs all layers."""

    answer_head = "student"

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Every model can."""

    def plan(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The last layer for all."""
        return _same_depth(tokens, model.config.num_hidden_layers)

    def thresholds(self, model: MultiExitBert) -> dict[int, float]:
        """No checks."""
        return {}


@dataclass(frozen=True)
class ConstantDepth:
    """Every sample is answered after the same layer.

    Args:
        layer: one of the model's exits.
        answer_head: "student" or "teacher".
    """

    layer: int
    answer_head: str = "student"

    def __post_init__(self) -> None:
        check_int("layer", self.layer, 1)
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """The layer must be an exit."""
        if self.layer not in model.config.exit_layers:
            raise ValueError(f"layer {self.layer} is not an exit of this model; exit_layers: {model.config.exit_layers}")

    def plan(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """That layer for all."""
        return _same_depth(tokens, self.layer)

    def thresholds(self, model: MultiExitBert) -> dict[int, float]:
        """No checks."""
        return {}


@dataclass(frozen=True)
class Threshold:
    """A sample leaves at the first exit whose normalized entropy is at or under the threshold (FastBERT); the batch shrinks.

    Args:
        threshold: 0..1, for every exit, or one per exit but the last; None: the model's own `config.exit_thresholds`.
    """

    threshold: float | Sequence[float] | None = None
    answer_head = "student"

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs classes, and thresholds that fit the exits."""
        if model.config.num_labels < 2:
            raise ValueError(
                "policy 'threshold' needs classes: normalized_entropy is not defined for a regression model "
                "(num_labels=1), which runs at full or constant depth"
            )
        values = self._values(model)
        if values is None:
            raise ValueError("policy 'threshold' needs a threshold: pass one, or set model.config.exit_thresholds")
        check_thresholds(values, len(model.config.exit_layers))

    def plan(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The last layer at the latest."""
        return _same_depth(tokens, model.config.num_hidden_layers)

    def thresholds(self, model: MultiExitBert) -> dict[int, float]:
        """A check at every early exit."""
        values, early = self._values(model), model.config.exit_layers[:-1]
        if not isinstance(values, (list, tuple)):
            values = [values] * len(early)
        return dict(zip(early, values, strict=True))

    def _values(self, model: MultiExitBert) -> float | Sequence[float] | None:
        return model.config.exit_thresholds if self.threshold is None else self.threshold


@dataclass(frozen=True)
class Predicted:
    """Each sample runs to the exit that the model's exit table predicts from its tokens, in dense sorted batches (GEEP).

    Args:
        decision: "argmax", "mean", or a quantile in (0, 1]; see
            `geep_triton.ops.predict_exits.predict_exits`.
        answer_head: "student" or "teacher".
    """

    decision: str | float = "argmax"
    answer_head: str = "student"

    def __post_init__(self) -> None:
        check_decision(self.decision)
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Needs an exit table built with this tokenizer."""
        if model.exit_table is None:
            raise ValueError("policy 'predicted' needs an exit table: model.exit_table = build_exit_table(model, ...)")
        config = model.config
        model.exit_table.check_fits(config.vocab_size, config.exit_layers, tokenizer_fingerprint(tokenizer))

    def plan(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The predicted exits."""
        return model.exit_table.predict(tokens, self.decision, model.device).exits.cpu()

    def thresholds(self, model: MultiExitBert) -> dict[int, float]:
        """No checks."""
        return {}


POLICIES = "full, constant:LAYER, threshold, threshold:T, predicted, predicted:mean, predicted:Q"


def parse_policy(text: str | Policy) -> Policy:
    """A policy from its short form, e.g. "full", "constant:3", "threshold:0.3", "predicted:0.9"; or as it is.

    Raises:
        ValueError: not such a form; the error lists the known ones. TypeError: neither a text nor a policy.
    """
    if not isinstance(text, str):
        if not all(hasattr(text, name) for name in ("answer_head", "check", "plan", "thresholds")):
            raise TypeError(f"policy must be a policy or its short form, got {shorten(text)}; known: {POLICIES}")
        return text
    name, _, value = text.partition(":")
    try:
        if name == "full" and not value:
            return FullDepth()
        if name == "constant":
            return ConstantDepth(int(value))
        if name == "threshold":
            return Threshold(float(value) if value else None)
        if name == "predicted":
            return Predicted(_decision(value) if value else "argmax")
    except ValueError as error:
        raise ValueError(f"policy {shorten(text)}: {error}; known: {POLICIES}") from error
    raise ValueError(f"unknown policy {shorten(text)}; known: {POLICIES}")


def _decision(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value
