"""Temperatures, by which an exit's probabilities mean what they say (Guo et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from geep_triton.answers import check_kind_of
from geep_triton.checks import check_int, check_kind, check_tensor
from geep_triton.engine.checks import as_list
from geep_triton.engine.engine import Engine
from geep_triton.engine.truth import true_answers
from geep_triton.tokens.samples import Inputs
from geep_triton.warn import warn


@dataclass(frozen=True)
class TemperatureFit:
    """What `fit_temperatures` found, an entry for each exit.

    Attributes:
        temperatures: above 1 for an exit that is too sure of itself.
        error_before: expected calibration error on the given texts, at the temperatures that the model had.
        error_after: the same at the temperatures that were found.
    """

    temperatures: tuple[float, ...]
    error_before: tuple[float, ...]
    error_after: tuple[float, ...]

    @classmethod
    def of(
        cls, logits: torch.Tensor, labels: torch.Tensor, before: Sequence[float] | None, counted: torch.Tensor | None
    ) -> TemperatureFit:
        """Fit them to logits [N, E, C] at temperature 1; see `best_temperatures`."""
        found = best_temperatures(logits, labels, counted)

        def errors(temperatures: Sequence[float]) -> tuple[float, ...]:
            exits = zip(logits.unbind(1), temperatures, strict=True)
            rows: Sequence[slice | torch.Tensor] = [slice(None)] * len(temperatures) if counted is None else counted.unbind(1)
            return tuple(
                expected_calibration_error(exit_[row] / temperature, labels[row])
                for (exit_, temperature), row in zip(exits, rows, strict=True)
            )

        return cls(tuple(found), errors(before or [1.0] * len(found)), errors(found))


def fit_temperatures(engine: Engine, inputs: Inputs, labels: Sequence[Any]) -> TemperatureFit:
    """Fit a temperature to each exit, so that its probabilities mean what they say. Answers stay the same.

    The model has classes, or sets of labels that are given from a probability of .5 on: with another decision, a temperature
    would change the answers.

    Do this first: thresholds, an exit table and a calibration that were made before mean something else afterwards.

    Args:
        engine: its model keeps the temperatures, in `model.exit_config.temperatures`, and saves them.
        inputs: texts as for `calibrate`. The model was not trained on them.
        labels: one per text: a name or an id; for sets of labels a list of names.

    Returns:
        One temperature per exit, and the expected calibration error of each exit before and after.

    Raises:
        ValueError: the model has scores, or another decision; labels do not fit, which is told before anything
            runs; and whatever `predict` raises.
        TypeError: `engine` is no engine, or inputs have another type.
    """
    check_kind("engine", engine, Engine)
    model, inputs = engine.model, as_list(inputs)
    check_kind_of(model.config, ("classes", "label sets"), "fit_temperatures")
    served, cuts = model.exit_config, model.answers.cuts
    if cuts is not None and any(cuts):
        raise ValueError(f"fit_temperatures needs decision=0.5 or None, since others change the answers, got {served.decision}")
    truth = true_answers(labels, len(inputs), model.config)
    record = engine.every_exit(inputs)
    logits, counted = record.logits, None
    if served.temperatures is not None:
        logits = logits * torch.tensor(served.temperatures)[:, None]
    if record.skipped is not None:  # an early exit scores only samples that run its layer
        counted = record.scored(model.config.exit_layers)
    found = TemperatureFit.of(logits, truth, served.temperatures, counted)
    stale = [name for name, value in (("calibration", served.calibration), ("exit table", model.exit_table)) if value]
    if stale:
        warn(f"the model's {' and '.join(stale)} were made with other temperatures: make them again")
    model.forget_calibration()
    engine.forget_promise()
    served.temperatures = found.temperatures
    return found


def check_labels(labels: torch.Tensor) -> None:
    """Raise unless labels are classes [N] int64 or sets of labels [N, C] bool."""
    if isinstance(labels, torch.Tensor) and labels.ndim == 2:
        check_tensor("labels", labels, 2, torch.bool)
    else:
        check_tensor("labels", labels, 1, torch.int64)


def best_temperatures(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor | None = None) -> list[float]:
    """The temperature of each exit at which its probabilities fit the labels best (least cross entropy).

    Args:
        logits: [N, E, C], at temperature 1, of texts that the model was not trained on.
        labels: [N] int64 classes, or [N, C] bool sets of labels.
        counted: [N, E] bool, the samples by which each exit is judged; None: all.

    Returns:
        E temperatures; above 1 for an exit that is too sure of itself.

    Raises:
        ValueError: there are no samples, or shapes differ.
    """
    check_tensor("logits", logits, 3)
    check_labels(labels)
    if not len(labels) or len(labels) != len(logits):
        raise ValueError(f"labels must be one per sample ({len(logits)}, at least 1), got {len(labels)}")
    logits = logits.double()
    targets = labels[:, None].expand(logits.shape[:2] if labels.ndim == 1 else logits.shape)
    # Cross entropy is convex in the inverse temperature. Its logarithm is fitted, which keeps it positive.
    log_inverse = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_inverse], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = logits * log_inverse.exp()[:, None]
        if labels.ndim == 1:
            losses = F.cross_entropy(scaled.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
        else:
            losses = F.binary_cross_entropy_with_logits(scaled, targets.double(), reduction="none").sum(-1)
        loss = (losses if counted is None else losses * counted).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    # An exit that is always right would want a temperature of 0.
    return (-log_inverse.detach()).clamp(-5.0, 5.0).exp().tolist()


def expected_calibration_error(logits: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence, weighted by samples (Naeini et al. 2015).

    Args:
        logits: [N, C].
        labels: [N] int64 classes, or [N, C] bool sets of labels, where each label counts as a sample of two classes.
        bins: into how many bins the highest probability, 0..1, is cut.
    """
    check_tensor("logits", logits, 2)
    check_labels(labels)
    check_int("bins", bins, 1)
    if not len(labels) or len(labels) != len(logits) or not logits.shape[1]:
        raise ValueError(f"labels must be one per sample ({len(logits)}, at least 1), got {len(labels)}")
    if labels.ndim == 1:
        confidence, prediction = logits.double().softmax(-1).max(-1)
        right = prediction == labels
    else:
        confidence = logits.double().abs().sigmoid().flatten()
        right = ((logits >= 0) == labels).flatten()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    excess = confidence - right.double()
    return float(torch.zeros(bins, dtype=torch.float64).index_add_(0, index, excess).abs().sum() / len(right))
