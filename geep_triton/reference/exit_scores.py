"""Uncertainty of an answer, and whether it is low enough to leave."""

from __future__ import annotations

import math

import torch


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of softmax(logits) over its maximum ln C: [N, C] -> [N] in [0, 1] (FastBERT's uncertainty, eq. 9)."""
    log_p = logits.float().log_softmax(-1)
    # p ln p is 0 where p is 0, also where the logit is -inf.
    entropy = -torch.where(log_p == -math.inf, 0.0, log_p.exp() * log_p).sum(-1)
    return (entropy / math.log(logits.shape[-1])).clamp(0.0, 1.0)


CRITERIA = {"normalized_entropy": normalized_entropy}


def score_exits(logits: torch.Tensor, threshold: float, criterion: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.exit_scores.score_exits`."""
    uncertainty = CRITERIA[criterion](logits)
    # A NaN compares false: it never leaves.
    return logits.argmax(-1), uncertainty, uncertainty <= threshold
