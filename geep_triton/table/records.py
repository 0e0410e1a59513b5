"""The inputs of an exit table: the recorded exits of texts, and the settings."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_int, check_number, check_tensor
from geep_triton.ops.exit_scores import CLASS_CRITERIA
from geep_triton.ops.predict_exits import REDUCTIONS
from geep_triton.ops.reference.ngrams import MAX_NGRAM
from geep_triton.tokens.ragged import Tokens

AGREEMENT = "agreement"  # the criterion by which a sample leaves where it has its final answer
TABLE_CRITERIA = (*CLASS_CRITERIA, AGREEMENT)


@dataclass(frozen=True, eq=False)
class ExitRecords:
    """The results of one run of every exit over a corpus. They suffice to rebuild a table for any threshold.

    Attributes:
        tokens: the N samples.
        uncertainty: [N, E] float32, the criterion's value at each exit; low means sure.
        agrees: [N, E] bool, whether each exit gives the last exit's answer. None: not recorded.
        skipped: [N, L] bool, the layers that each sample skipped. None for a model without skip gates.
        logits: [N, E, C] float32, the answers of every exit. None: not recorded.
    """

    tokens: Tokens
    uncertainty: torch.Tensor
    agrees: torch.Tensor | None = None
    skipped: torch.Tensor | None = None
    logits: torch.Tensor | None = None

    def check(self, num_exits: int) -> None:
        """Check shapes and values.

        Raises:
            ValueError: there are no samples, a sample lacks a value for an exit, or a value is NaN or -infinity.
        """
        check_tensor("records.uncertainty", self.uncertainty, 2)
        if not len(self.tokens):
            raise ValueError("records: an exit table needs at least one sample")
        if self.uncertainty.shape != (len(self.tokens), num_exits):
            raise ValueError(
                f"records.uncertainty must have shape {(len(self.tokens), num_exits)}, got {tuple(self.uncertainty.shape)}"
            )
        if self.agrees is not None and self.agrees.shape != self.uncertainty.shape:
            raise ValueError(f"records.agrees must have shape {tuple(self.uncertainty.shape)}, got {tuple(self.agrees.shape)}")
        if self.logits is not None and (self.logits.ndim != 3 or self.logits.shape[:2] != self.uncertainty.shape):
            raise ValueError(f"records.logits must have shape {(*self.uncertainty.shape, 'C')}, got {tuple(self.logits.shape)}")
        if (self.uncertainty.isnan() | self.uncertainty.isneginf()).any():
            raise ValueError("records.uncertainty holds NaN or -infinity: the model that made it gives NaN logits")


@dataclass(frozen=True)
class TableSettings:
    """How a table is made from records, and how it predicts.

    Attributes:
        threshold: a sample leaves at the first exit whose uncertainty is at most this, 0..1.
        ngram: highest order of the n-grams that are counted, 1..16. 1 counts single tokens, 2 also pairs of neighbours.
        smoothing: pseudo-count a of the prior: P(e|v) = (count[v,e] + a prior[e]) / (sum_e count[v,e] + a).
        reduction: how the keys of a sample are combined into its distribution: "mean" or "naive_bayes".

    Raises:
        ValueError: a setting is out of range.
        TypeError: a setting has another type.
    """

    threshold: float
    ngram: int = 2
    smoothing: float = 1.0
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_int("ngram", self.ngram, 1)
        check_int("ngram", self.ngram, 1, MAX_NGRAM)
        check_number("smoothing", self.smoothing, 0.0, sys.float_info.max)
        check_choice("reduction", self.reduction, REDUCTIONS)


def first_sure_exit(uncertainty: torch.Tensor, threshold: float) -> torch.Tensor:
    """Index of the first exit whose uncertainty is at most a threshold, else of the last exit.

    Args:
        uncertainty: [N, E].
        threshold: the threshold.

    Returns:
        [N] int64.
    """
    sure = uncertainty <= threshold
    sure[:, -1] = True
    return sure.int().argmax(-1)


def skipped_at(skipped: torch.Tensor, exit_layers: Sequence[int]) -> torch.Tensor:
    """At which exits samples skipped the layer: [N, L] bool of all layers -> [N, E] bool. Everybody is answered at the last."""
    found = skipped[:, torch.tensor(exit_layers) - 1]
    found[:, -1] = False
    return found
