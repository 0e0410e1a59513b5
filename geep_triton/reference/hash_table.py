"""Counts per key and exit, and exits predicted from them. The table is its keys, sorted, and one row of counts a key."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def insert_add(keys: torch.Tensor, exits: torch.Tensor, num_exits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.hash_table.insert_add`."""
    unique, rows = torch.unique(keys, return_inverse=True)
    counts = torch.bincount(rows * num_exits + exits, minlength=unique.numel() * num_exits)
    return unique, counts.view(unique.numel(), num_exits)


def lookup(table_keys: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.hash_table.lookup`."""
    miss = table_keys.numel()
    if miss == 0:
        return torch.zeros_like(keys)
    rows = torch.searchsorted(table_keys, keys).clamp_(max=miss - 1)
    return torch.where(table_keys[rows] == keys, rows, miss)


def predict_exits(
    rows: torch.Tensor, samples: torch.Tensor, num_samples: int, scores: torch.Tensor, log_space: bool
) -> torch.Tensor:
    """See `geep_triton.ops.hash_table.predict_exits`."""
    lengths = torch.bincount(samples, minlength=num_samples)
    # embedding_bag wants each sample's rows together; n-grams of several orders are not.
    rows = rows[samples.argsort(stable=True)]
    starts = lengths.cumsum(0) - lengths
    if not log_space:
        means = F.embedding_bag(rows, scores, starts, mode="mean")
        return torch.where(lengths[:, None] > 0, means, scores[-1])
    # An exit that nobody took has probability 0; the floor keeps its logarithm finite.
    log_scores = scores.clamp(min=torch.finfo(scores.dtype).tiny).log()
    evidence = F.embedding_bag(rows, log_scores, starts, mode="sum")
    return (evidence + (1 - lengths[:, None]) * log_scores[-1]).softmax(-1)
