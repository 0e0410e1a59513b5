"""Who leaves at a stop: the second of the three questions that a policy answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_int, shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import ExitScores, check_criterion, score_exits

REGROUPS = ("auto", "always", "never")


@dataclass(frozen=True)
class ExitRule:
    """Where samples are scored on one model, and what makes them leave; see `geep_triton.ops.exit_scores.score_exits`.

    Attributes:
        thresholds: layer of an early exit -> threshold. Samples are scored at these exits only.
        criterion, top_k, rule, patience: as for `score_exits`.
    """

    thresholds: Mapping[int, float]
    criterion: str = "normalized_entropy"
    top_k: int = 5
    rule: str = "confidence"
    patience: int = 1

    def next_stop(self, layer: int, last: int) -> int:
        """The next layer after `layer` at which a sample is scored, or the last layer."""
        return min((stop for stop in self.thresholds if stop > layer), default=last)

    @property
    def remembers(self) -> bool:
        """Whether the scores of one exit depend on those of the exit before."""
        return self.rule != "confidence" or self.patience > 1

    def score(self, layer: int, logits: torch.Tensor, previous: torch.Tensor | None, streak: torch.Tensor | None) -> ExitScores:
        """Score the answers [B, C] of the exit at `layer`, given prediction and streak [B] at the exit before."""
        return score_exits(
            logits,
            self.thresholds[layer],
            self.criterion,
            top_k=self.top_k,
            rule=self.rule,
            patience=self.patience,
            previous=previous,
            streak=streak,
        )


class _Scored:
    """What `Sure` and `Patient` share: their settings are checked, and their lists are kept as tuples."""

    def __post_init__(self) -> None:
        for name in ("threshold", "layers"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        check_choice("regroup", self.regroup, REGROUPS)
        check_criterion(0.0, self.criterion, self.top_k)


@dataclass(frozen=True)
class Sure(_Scored):
    """A sample leaves at the first exit whose uncertainty is at or under the threshold (FastBERT, DeeBERT and others).

    Args:
        threshold: for every exit, or one per scored exit; None: the model's own `exit_config.thresholds`.
        criterion: the uncertainty; see `geep_triton.ops.exit_scores.score_exits`.
        top_k: of the criterion "top_k_entropy".
        layers: exits at which samples are scored; None: all but the last.
        regroup: what those who stay do. "always": they wait for others until they fill a dense batch. "never": they go on in
            their batch, which shrinks. "auto": as measured costs say.
    """

    threshold: float | Sequence[float] | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: tuple[int, ...] | None = None
    regroup: str = "auto"

    def rule(self, model: MultiExitBert) -> ExitRule:
        """A score at every chosen exit. ValueError where the model has no classes, or thresholds or layers do not fit it."""
        layers = _scored_layers(model, self.layers)
        return ExitRule(_thresholds(model, self.threshold, self.criterion, self.top_k, layers), self.criterion, self.top_k)


@dataclass(frozen=True)
class Patient(_Scored):
    """A sample leaves once `patience` exits in a row have agreed with the one before (PABEE, Zhou et al. 2020), or, with a
    threshold, have been sure (PCEE, Zhang et al. 2022).

    Args:
        patience: length of the streak, at least 1.
        threshold: None: PABEE; else the uncertainty at or under which an exit is sure, for every exit or one each.
        criterion, top_k, layers, regroup: as for `Sure`.
    """

    patience: int
    threshold: float | Sequence[float] | None = None
    criterion: str = "normalized_entropy"
    top_k: int = 5
    layers: tuple[int, ...] | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("patience", self.patience, 1)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """A score at every chosen exit. ValueError as for `Sure`."""
        layers = _scored_layers(model, self.layers)
        if self.threshold is None:
            return ExitRule(dict.fromkeys(layers, 0.0), self.criterion, self.top_k, "agreement", self.patience)
        thresholds = _thresholds(model, self.threshold, self.criterion, self.top_k, layers)
        return ExitRule(thresholds, self.criterion, self.top_k, "confidence", self.patience)


Leave = Sure | Patient


def _scored_layers(model: MultiExitBert, layers: Sequence[int] | None) -> list[int]:
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


def _thresholds(
    model: MultiExitBert, threshold: float | Sequence[float] | None, criterion: str, top_k: int, layers: Sequence[int]
) -> dict[int, float]:
    """Layer -> threshold; the model's own where none is given. ValueError where they do not fit."""
    if threshold is None:
        if criterion != "normalized_entropy":
            raise ValueError(f"criterion {criterion!r} needs a threshold: exit_config.thresholds are of normalized_entropy")
        threshold = model.exit_config.thresholds
        if threshold is None:
            raise ValueError("this policy needs a threshold: pass one, or set model.exit_config.thresholds")
        if isinstance(threshold, (list, tuple)):
            by_layer = dict(zip(model.config.exit_layers[:-1], threshold, strict=True))
            threshold = [by_layer[layer] for layer in layers]
    values = list(threshold) if isinstance(threshold, (list, tuple)) else [threshold] * len(layers)
    if len(values) != len(layers):
        raise ValueError(f"threshold must be one number, or one per scored exit {list(layers)}, got {len(values)}")
    for value in values:
        check_criterion(value, criterion, top_k)
    return dict(zip(layers, values, strict=True))
