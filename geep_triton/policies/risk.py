"""Who leaves by the risk of another answer, which the exit table's forecasts say of each answer (*our addition*)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import ExitScores
from geep_triton.policies.leave import ExitRule, Scored, Threshold, check_each, for_layers, scored_layers
from geep_triton.table.exit_table import FORECASTS
from geep_triton.table.forecasts import Forecasts


@dataclass(frozen=True, kw_only=True)
class RiskRule(ExitRule):
    """Scores answers by their risk.

    Attributes:
        forecasts: say how likely an answer is the last exit's.
        exit_layers: the layers of the model's exits.
    """

    forecasts: Forecasts
    exit_layers: tuple[int, ...]

    def score(self, layer: int, logits: torch.Tensor, previous: torch.Tensor | None, streak: torch.Tensor | None) -> ExitScores:
        """The risk of each answer [B, C]. Earlier exits do not count."""
        known = logits.isfinite().all(1)
        agreement = self.forecasts.agreement(self.exit_layers.index(layer), logits)[:, 0]
        risk = (1 - agreement).masked_fill(~known, torch.nan)
        leaves = risk <= self.thresholds[layer]
        counts = torch.stack([leaves.sum(), (~known).sum()]).int()
        return ExitScores(logits.argmax(-1), risk, leaves, leaves.int(), counts)


@dataclass(frozen=True)
class LowRisk(Scored):
    """A sample leaves at the first exit whose answer is unlikely to differ from the last exit's.

    A small net of the exit forecasts that. It is learned without labels; see `ExitTable.learn`. It suits all kinds of answers
    that can be compared. UCCI calibrates such a risk for each model of a cascade, and has one threshold for all.

    Args:
        risk: the highest probability of another answer at which a sample leaves, 0..1: one for every exit, or one per
            scored exit.
        layers: as for `Sure`.
        regroup: as for `Sure`.

    Raises:
        ValueError: a setting is unknown or out of range.
        TypeError: a setting has another type.
    """

    risk: Threshold
    layers: list[int] | tuple[int, ...] | None = None
    regroup: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_each("risk", self.risk, 0.0, 1.0)

    def rule(self, model: MultiExitBert) -> ExitRule:
        """The rule on this model. ValueError unless its exit table has forecasts, of these weights."""
        forecasts = forecasts_of(model, "risk")
        layers = scored_layers(model, self.layers)
        return RiskRule(
            for_layers("risk", self.risk, layers),
            "risk",
            forecasts=forecasts,
            exit_layers=tuple(model.config.exit_layers),
        )


def forecasts_of(model: MultiExitBert, policy: str) -> Forecasts:
    """The forecasts of the model's exit table. ValueError if there are none, or they are of other weights or other exits."""
    table = model.own_table
    if table is None:
        raise ValueError(
            f"policy {policy!r} needs an exit table with forecasts: model.exit_table = build_exit_table(model, ...)"
        )
    table.check_fits(model.config.vocab_size, model.config.exit_layers)
    if table.forecasts is None:
        raise ValueError(f"policy {policy!r} needs forecasts: {table.how_to_learn(FORECASTS)}")
    if table.answers_by not in (None, now := model.exit_config.answers_by):
        raise ValueError(
            f"policy {policy!r}: exit_table has forecasts of answers by {table.answers_by}, the model now answers by {now}: "
            "build it again"
        )
    if (classes := table.forecasts.held_out.shape[2]) != model.config.num_labels:
        raise ValueError(
            f"exit_table has forecasts of {classes} labels, the model has {model.config.num_labels}: build it again"
        )
    return table.forecasts


def has_forecasts(model: MultiExitBert) -> bool:
    """Whether the model's exit table has forecasts that it may use."""
    try:
        forecasts_of(model, "risk")
    except ValueError:
        return False
    return True
