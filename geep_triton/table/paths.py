"""Paths: the layers that a sample skips, predicted from its tokens before any layer runs (*our addition*)."""

from __future__ import annotations

import torch


def common_paths(skipped: torch.Tensor, most: int) -> torch.Tensor:
    """The most common sets of skipped layers, most frequent first.

    Args:
        skipped: [N, L] bool, the layers that each sample skipped.
        most: number of paths to return at most.

    Returns:
        [K, L] bool, K <= most.
    """
    paths, counts = torch.unique(skipped, dim=0, return_counts=True)
    return paths[counts.argsort(descending=True, stable=True)[:most]]


def choose_paths(probabilities: torch.Tensor, paths: torch.Tensor, price: float = 0.0) -> torch.Tensor:
    """The most likely path of each sample, minus a price for every layer that it runs.

    Args:
        probabilities: [N, L], the probability that each layer is skipped.
        paths: [K, L] bool, the skipped layers of each path.
        price: price of a layer in nats of log-likelihood. Below 0 it rewards layers that run.

    Returns:
        [N] int64, index of the path.
    """
    probabilities = probabilities.double().clamp(1e-6, 1 - 1e-6)
    skips = paths.double()
    likelihood = probabilities.log() @ skips.T + (1 - probabilities).log() @ (1 - skips).T
    return (likelihood - price * (1 - skips).sum(1)).argmax(1)
