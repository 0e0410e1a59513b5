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


CLASS_CRITERIA = {
    "normalized_entropy": normalized_entropy,
    "entropy": entropy,
    "max_probability": max_probability,
    "margin": margin,
    "top_k_entropy": top_k_entropy,
    "energy": energy,
}


def best_class(logits: torch.Tensor, criterion: str, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and uncertainties of classes that compete: [N, C] -> [N] int64, [N]."""
    top, best = logits.max(-1)
    # A row with NaN or +inf, or with only -inf, gives NaN here, and every criterion propagates it.
    uncertainty = CLASS_CRITERIA[criterion](logits - top[:, None], top, top_k)
    return best.masked_fill(uncertainty.isnan(), -1), uncertainty


def distance(logits: torch.Tensor, cuts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """How many logits are at or above their cut, and -min |logit - cut|: [N, C], [C] -> [N] int64, [N]."""
    # x - x is NaN where x is not finite, also beside an infinite cut, and amin keeps it. Where it is 0 it changes nothing.
    away = (logits - cuts).abs() + (logits - logits)
    uncertainty = 0.0 - away.amin(-1)  # -x would be -0 at the cut
    return (logits >= cuts).sum(-1).masked_fill(uncertainty.isnan(), -1), uncertainty


def change(logits: torch.Tensor, previous: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and how far they are from the previous ones: [N, 1], [N] -> [N], [N]."""
    scores = logits[:, 0].masked_fill(~logits[:, 0].isfinite(), torch.nan)
    if previous is None:
        previous = torch.full_like(scores, torch.nan)
    unmeasured = previous.isnan() & ~scores.isnan()
    return scores, (scores - previous).abs().masked_fill(unmeasured, torch.inf)


def score_exits(
    logits: torch.Tensor,
    threshold: float,
    criterion: str,
    top_k: int,
    rule: str,
    patience: int,
    previous: torch.Tensor | None,
    streak: torch.Tensor | None,
    cuts: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.exit_scores.score_exits`."""
    if criterion == "change":
        prediction, uncertainty = change(logits.float(), previous)
    elif cuts is not None:  # for "distance" only
        prediction, uncertainty = distance(logits.float(), cuts)
    else:
        prediction, uncertainty = best_class(logits.float(), criterion, top_k)
    invalid = uncertainty.isnan()
    if rule == "confidence":
        continues = uncertainty <= threshold  # a comparison with NaN is False
    else:
        continues = torch.zeros_like(invalid) if previous is None else ~invalid & (prediction == previous)
    streak = continues.int() if streak is None else torch.where(continues, streak + 1, 0).int()
    leaves = continues if patience == 1 else streak >= patience
    counts = torch.stack([leaves, invalid]).sum(1, dtype=torch.int32)
    return prediction, uncertainty, leaves, streak, counts
