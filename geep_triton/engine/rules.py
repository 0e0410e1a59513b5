"""Exit rules: when a sample that was scored may be answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from geep_triton.ops.exit_scores import ExitScores, score_exits


@dataclass(frozen=True)
class ExitRule:
    """Where samples are scored on their way, and what makes them leave; see `geep_triton.ops.exit_scores.score_exits`.

    Attributes:
        thresholds: layer of an early exit -> threshold. Samples are scored at these exits only.
        criterion, top_k, rule, patience: of `score_exits`.
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
