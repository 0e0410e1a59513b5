"""Who leaves at a stop: the second of the three questions of a policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, TypeAlias

import torch

from geep_triton.answers import check_kind_of
from geep_triton.checks import check_choice, check_int, check_number, shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import CLASS_CRITERIA, ExitScores, check_criterion, score_exits
from geep_triton.tokens.ragged import to_device

Threshold: TypeAlias = float | list[float] | tuple[float, ...]  # for every exit, or one each
REGROUPS = ("auto", "always", "never")


@dataclass(frozen=True)
class ExitRule:
    """At which exits of a model samples are scored, and what makes them leave. See `geep_triton.ops.exit_scores.score_exits`.

    Attributes:
        thresholds: layer of an early exit to threshold. Samples are scored at these exits only.
        criterion: as for `score_exits`.
        top_k: as for `score_exits`.
        rule: as for `score_exits`.
        patience: as for `score_exits`.
        cuts: as for `score_exits`, one for each logit. None: the criterion needs none.
    """

    thresholds: Mapping[int, float]
    criterion: str = "normalized_entropy"
    top_k: int = 5
    rule: str = "confidence"
    patience: int = 1
    cuts: tuple[float, ...] | None = None

    def next_stop(self, layer: int, last: int) -> int:
        """The next layer after `layer` at which a sample is scored, or the last layer."""
        return min((stop for stop in self.thresholds if stop > layer), default=last)

    @property
    def remembers(self) -> bool:
        """Whether the scores at one exit depend on those at the previous exit."""
        return self.rule != "confidence" or self.patience > 1 or self.criterion == "change"

    def nothing_remembered(self, samples: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and streaks [B] of samples that were not scored yet."""
        previous = torch.full((samples,), -1, device=device)
        if self.criterion == "change":
            previous = torch.full((samples,), torch.nan, device=device)
        return previous, torch.zeros(samples, dtype=torch.int32, device=device)

    def score(self, layer: int, logits: torch.Tensor, previous: torch.Tensor | None, streak: torch.Tensor | None) -> ExitScores:
        """Score the answers [B, C] of the exit at `layer`, given the predictions and streaks [B] at the previous exit."""
        return score_exits(
            logits,
            self.thresholds[layer],
            self.criterion,
            top_k=self.top_k,
            rule=self.rule,
            patience=self.patience,
            previous=previous,
            streak=streak,
            cuts=None if self.cuts is None else to_device(torch.tensor(self.cuts, dtype=torch.float32), logits.device),
        )


class Leave(Protocol):
    """The method that a leave must have. Any object with it is a leave. It may have the attribute `regroup` of `Sure`, too."""

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model, with a threshold for each early exit that scores samples, in ascending order.

        A subclass of `ExitRule` may have a `score` of its own. ValueError if this leave cannot be used with this model.
        """


class Scored:
    """The base of the leaves. It checks `regroup` and converts lists to tuples."""

    regroup: str

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every leave is a dataclass
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        check_choice("regroup", self.regroup, REGROUPS)


class _Unsure(Scored):
    """The base of the leaves that go by the uncertainty of a class."""

    criterion: str
    top_k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("criterion", self.criterion, CLASS_CRITERIA)
        check_criterion(0.0, self.criterion, self.top_k)


@dataclass(frozen=True)
class Sure(_Unsure):
    """A sample leaves at the first exit whose uncertainty is at most the threshold (FastBERT, DeeBERT and others).

    Args:
        threshold: one for every exit, or one per scored exit. None: the model's own `exit_config.thresholds`.
        criterion: the uncertainty, see `geep_triton.ops.exit_scores.score_exits`.
        top_k: k of the criterion "top_k_entropy".
        layers: exits at which samples are scored. None: all but the last.
        regroup: how samples that stay continue: "always" (they wait for others until they fill a dense batch), "never" (they
            continue in their batch, which shrinks) or "auto" (measured costs decide).

    Raises:
        ValueError: `criterion`, `regroup` or `top_k` is unknown or out of range.
        TypeError: a setting has another type.
    """

    threshold: Threshold | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: list[int] | tuple[int, ...] | None = None
    regroup: str = "auto"

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model. ValueError if the model has no classes, or thresholds or layers do not fit it."""
        check_kind_of(model.config, ("classes",), "a threshold of uncertainty")
        layers = scored_layers(model, self.layers)
        return ExitRule(_thresholds(model, self.threshold, self.criterion, self.top_k, layers), self.criterion, self.top_k)


@dataclass(frozen=True)
class Patient(_Unsure):
    """A sample leaves when `patience` exits in a row agree with the previous exit (PABEE, Zhou et al. 2020).

    With a threshold, it leaves when `patience` exits in a row are sure (PCEE, Zhang et al. 2022).

    Args:
        patience: length of the streak, at least 1.
        threshold: an exit is sure if its uncertainty is at most this; one for every exit, or one per scored exit. None: PABEE.
        criterion: as for `Sure`.
        top_k: as for `Sure`.
        layers: as for `Sure`.
        regroup: as for `Sure`.

    Raises:
        ValueError: a setting is unknown or out of range.
        TypeError: a setting has another type.
    """

    patience: int
    threshold: Threshold | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: list[int] | tuple[int, ...] | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("patience", self.patience, 1)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model. It raises as `Sure.rule` does."""
        check_kind_of(model.config, ("classes",), "patience")
        layers = scored_layers(model, self.layers)
        if self.threshold is None:
            return ExitRule(dict.fromkeys(layers, 0.0), self.criterion, self.top_k, "agreement", self.patience)
        thresholds = _thresholds(model, self.threshold, self.criterion, self.top_k, layers)
        return ExitRule(thresholds, self.criterion, self.top_k, "confidence", self.patience)


@dataclass(frozen=True)
class Far(Scored):
    """A sample leaves at the first exit where every logit is far enough from its cut.

    For a score the cut is the model's decision, so that a sample leaves where it is clear on which side it lies. For label
    sets each label has its cut, so that a sample leaves where every label is clear.

    Args:
        distance: from the cut, at least 0, in the unit of the logits (a score's own unit; log-odds for labels and
            probabilities): one for every exit, or one per scored exit.
        layers: as for `Sure`.
        regroup: as for `Sure`.

    Raises:
        ValueError: a setting is unknown or out of range.
        TypeError: a setting has another type.
    """

    distance: Threshold
    layers: list[int] | tuple[int, ...] | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each("distance", self.distance, 0.0)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model. ValueError for a model of classes, or a score without a decision."""
        check_kind_of(model.config, ("score", "label sets"), "a distance")
        if (cuts := model.answers.cuts) is None:
            raise ValueError("a distance needs a decision: set model.exit_config.decision to the score that is the cut")
        layers = scored_layers(model, self.layers)
        thresholds = {layer: -value for layer, value in for_layers("distance", self.distance, layers).items()}
        return ExitRule(thresholds, "distance", cuts=cuts)


@dataclass(frozen=True)
class Steady(Scored):
    """A sample leaves when its score changed little over `patience` exits in a row (PABEE for regression, Zhou et al. 2020).

    Args:
        change: an exit is steady if its logit differs by at most this from that of the scored exit before, from 0 on: one
            for every exit, or one per scored exit. At the first one nobody leaves.
        patience: length of the streak, at least 1.
        layers: as for `Sure`.
        regroup: as for `Sure`.

    Raises:
        ValueError: a setting is unknown or out of range.
        TypeError: a setting has another type.
    """

    change: Threshold
    patience: int = 1
    layers: list[int] | tuple[int, ...] | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("patience", self.patience, 1)
        check_each("change", self.change, 0.0)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model. ValueError unless the model has one score."""
        check_kind_of(model.config, ("score",), "a steady score")
        layers = scored_layers(model, self.layers)
        return ExitRule(for_layers("change", self.change, layers), "change", patience=self.patience)


def scored_layers(model: MultiExitBert, layers: Sequence[int] | None) -> list[int]:
    """The early exits at which samples are scored. ValueError if they are not exits of this model."""
    early = model.config.exit_layers[:-1]
    if layers is None:
        return early
    if not isinstance(layers, (list, tuple)):
        raise TypeError(f"layers must be a list of ints, got {shorten(layers)} of type {type(layers).__name__}")
    if not layers or list(layers) != [layer for layer in early if layer in layers]:
        raise ValueError(f"layers must be some of this model's early exits {early}, ascending, got {list(layers)}")
    return list(layers)


def _thresholds(
    model: MultiExitBert, threshold: Threshold | None, criterion: str, top_k: int, layers: Sequence[int]
) -> dict[int, float]:
    """Layer to threshold, by default the model's own. ValueError if they do not fit."""
    if threshold is None:
        if criterion != "normalized_entropy":
            raise ValueError(f"criterion {criterion!r} needs a threshold: exit_config.thresholds are of normalized_entropy")
        threshold = model.exit_config.thresholds
        if threshold is None:
            raise ValueError("this policy needs a threshold: pass one, or set model.exit_config.thresholds")
        if isinstance(threshold, (list, tuple)):
            by_layer = dict(zip(model.config.exit_layers[:-1], threshold, strict=True))
            threshold = [by_layer[layer] for layer in layers]
    by_exit = for_layers("threshold", threshold, layers)
    for value in by_exit.values():
        check_criterion(value, criterion, top_k)
    return by_exit


def check_each(name: str, value: Threshold, low: float, high: float = math.inf) -> None:
    """Check that a number for all exits, or each of several, lies within bounds. It raises as `check_number` does."""
    for one in value if isinstance(value, (list, tuple)) else (value,):
        check_number(name, one, low, high)


def for_layers(name: str, value: Threshold, layers: Sequence[int]) -> dict[int, float]:
    """Layer to value, from one for all or one each. ValueError if there are more or fewer."""
    values = list(value) if isinstance(value, (list, tuple)) else [value] * len(layers)
    if len(values) != len(layers):
        raise ValueError(f"{name} must be one number, or one per scored exit {list(layers)}, got {len(values)}")
    return dict(zip(layers, values, strict=True))
