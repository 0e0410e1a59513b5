"""Losses of models that skip layers (SmartBERT, Hu et al., IJCAI 2023), as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def inverse_gate_sum(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 / sum over the layers of the batch's mean gate: SmartBERT's cost term, to be weighted by lambda.

    Args:
        gates: one [B] soft gate per gated layer.

    Returns:
        Scalar.
    """
    return 1.0 / torch.stack([gate.mean() for gate in gates]).sum()


def skip_rate_loss(gates: Sequence[torch.Tensor], target: float) -> torch.Tensor:
    """(mean gate - target)^2, the mean over samples and gated layers: a wanted rate instead of a lambda to be searched.

    Args:
        gates: one [B] soft gate per gated layer.
        target: 0..1.

    Returns:
        Scalar.
    """
    return (torch.stack(tuple(gates)).mean() - target) ** 2


def flops_budget_loss(gates: Sequence[torch.Tensor], costs: torch.Tensor, num_layers: int, budget: float) -> torch.Tensor:
    """(share of the layers' FLOPs that runs - budget)^2; long samples weigh more, layers without a gate always run.

    Args:
        gates: one [B] soft gate per gated layer.
        costs: [B], FLOPs of one layer on each sample.
        num_layers: L.
        budget: share of all layers' FLOPs, 0..1.

    Returns:
        Scalar.
    """
    skipped = torch.stack(tuple(gates)).sum(0)
    share = (costs * (num_layers - skipped)).sum() / (costs.sum() * num_layers)
    return (share - budget) ** 2


def token_contrast(
    queries: torch.Tensor,
    keys: torch.Tensor,
    attention_mask: torch.Tensor,
    temperature: float,
    positive_below: bool = True,
) -> torch.Tensor:
    """Token InfoNCE within each sequence: a token's feature shall be nearest to its own in the neighbouring layer.

    -mean_t log( exp(q_t . k_t / tau) / sum_u exp(q_t . k_u / tau) ), q and k normalised; mean over a sample's tokens, then
    over samples (Hu et al. 2023, cross-layer contrastive learning). Unlike in the released code padding takes no part.

    Args:
        queries, keys: [B, S, D].
        attention_mask: [B, S], 1 for real tokens.
        temperature: tau, above 0.
        positive_below: whether u runs over t too (first stage) or leaves it out (second stage, where a sample of one token,
            which has no other, counts 0).

    Returns:
        Scalar.
    """
    real = attention_mask.bool()
    similarity = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).transpose(1, 2) / temperature
    positive = similarity.diagonal(dim1=1, dim2=2)
    below = real[:, None, :].expand_as(similarity)
    if not positive_below:
        below = below & ~torch.eye(similarity.shape[1], dtype=torch.bool, device=similarity.device)
    counted = real & below.any(-1)
    # A row with nothing below would be ln 0; it is left out, but must not make a NaN of the gradient either.
    below = below | ~counted[:, :, None]
    terms = similarity.masked_fill(~below, -torch.inf).logsumexp(-1) - positive
    terms = torch.where(counted, terms, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return terms.mean()
