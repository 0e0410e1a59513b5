"""Losses of models that skip layers, as pure functions (SmartBERT, Hu et al., IJCAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def inverse_gate_sum(gates: Sequence[torch.Tensor]) -> torch.Tensor:
    """1 / (sum over the layers of the batch's mean gate): SmartBERT's cost term before its weight lambda.

    Args:
        gates: one [B] soft gate per gated layer.

    Returns:
        Scalar.
    """
    return 1.0 / torch.stack([gate.mean() for gate in gates]).sum()


def skip_rate_loss(gates: Sequence[torch.Tensor], target: float) -> torch.Tensor:
    """(mean gate - target)^2 over samples and gated layers. A target rate replaces the search for lambda (*our addition*).

    Args:
        gates: one [B] soft gate per gated layer.
        target: target of the mean gate, 0..1.

    Returns:
        Scalar.
    """
    return (torch.stack(tuple(gates)).mean() - target) ** 2


def flops_budget_loss(gates: Sequence[torch.Tensor], costs: torch.Tensor, num_layers: int, budget: float) -> torch.Tensor:
    """(share of the layers' FLOPs that runs - budget)^2 (*our addition*). Long samples weigh more. Layers without a gate always
    run.

    Args:
        gates: one [B] soft gate per gated layer.
        costs: [B], FLOPs of one layer for each sample, in any unit.
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
    """Token InfoNCE within each sequence: it pulls a token's feature to its own feature in the neighbouring layer.

    -mean_t log( exp(q_t . k_t / tau) / sum_u exp(q_t . k_u / tau) ) with normalised q and k. The loss is a mean over a sample's
    tokens, then over samples (Hu et al. 2023, cross-layer contrastive learning). Padding is left out, unlike in the released
    code.

    Args:
        queries: [B, S, D].
        keys: [B, S, D].
        attention_mask: [B, S], 1 for real tokens.
        temperature: tau, above 0.
        positive_below: whether u includes t (first stage). Without t (second stage) a sample of a single token counts 0.

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
    # A row with nothing below gives ln 0. It is not counted, but it must not turn the gradient into NaN.
    below = below | ~counted[:, :, None]
    terms = similarity.masked_fill(~below, -torch.inf).logsumexp(-1) - positive
    terms = torch.where(counted, terms, 0.0).sum(1) / counted.sum(1).clamp(min=1)
    return terms.mean()
