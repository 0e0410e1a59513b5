"""The uncertainty of an answer, and the samples that may leave."""

from __future__ import annotations

import math

import torch


def entropy(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """-sum p ln p of p = softmax(logits), in [0, ln C].

    Args:
        shifted: [N, C], logits minus the highest of their row, so that nothing overflows or cancels.
        top: [N], the highest logit of each row.
        top_k: not used here.

    Returns:
        [N].
    """
    shares = shifted.exp()
    total = shares.sum(-1)
    # p ln p is 0 if p is 0, also for a logit of -inf.
    weighted = shares * shifted.clamp(min=torch.finfo(shifted.dtype).min)
    return total.log() - weighted.sum(-1) / total


def normalized_entropy(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """Entropy divided by its maximum ln C."""
    return (entropy(shifted, top, top_k) / math.log(shifted.shape[-1])).clamp(0.0, 1.0)


def top_k_entropy(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """Normalized entropy of the `top_k` highest logits."""
    return normalized_entropy(shifted.topk(min(top_k, shifted.shape[-1])).values, top, top_k)


def max_probability(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """1 - max p."""
    return 1.0 - 1.0 / shifted.exp().sum(-1)


def margin(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """1 - (highest p - second highest p)."""
    best = shifted.softmax(-1).topk(2).values
    return 1.0 - (best[:, 0] - best[:, 1])


def energy(shifted: torch.Tensor, top: torch.Tensor, top_k: int) -> torch.Tensor:
    """-ln sum exp(logits)."""
    return -(top + shifted.exp().sum(-1).log())


CRITERIA = {
    "normalized_entropy": normalized_entropy,
    "entropy": entropy,
    "max_probability": max_probability,
    "margin": margin,
    "top_k_entropy": top_k_entropy,
    "energy": energy,
}


def score_exits(
    logits: torch.Tensor,
    threshold: float,
    criterion: str,
    top_k: int,
    rule: str,
    patience: int,
    previous: torch.Tensor | None,
    streak: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.exit_scores.score_exits`."""
    logits = logits.float()
    top, best = logits.max(-1)
    # A row with NaN or +inf, or with only -inf, gives NaN here, and every criterion propagates it.
    uncertainty = CRITERIA[criterion](logits - top[:, None], top, top_k)
    invalid = uncertainty.isnan()
    prediction = best.masked_fill(invalid, -1)
    if rule == "confidence":
        continues = uncertainty <= threshold  # a comparison with NaN is False
    else:
        continues = torch.zeros_like(invalid) if previous is None else ~invalid & (prediction == previous)
    streak = continues.int() if streak is None else torch.where(continues, streak + 1, 0).int()
    leaves = continues if patience == 1 else streak >= patience
    counts = torch.stack([leaves, invalid]).sum(1, dtype=torch.int32)
    return prediction, uncertainty, leaves, streak, counts
