"""Paths: which layers a sample skips, predicted from its tokens before any layer runs."""

from __future__ import annotations

import torch


def common_paths(skipped: torch.Tensor, most: int) -> torch.Tensor:
    """[N, L] bool, the layers each sample skipped -> the `most` commonest rows, the most frequent first."""
    paths, counts = torch.unique(skipped, dim=0, return_counts=True)
    return paths[counts.argsort(descending=True, stable=True)[:most]]


def choose_paths(probabilities: torch.Tensor, paths: torch.Tensor, price: float = 0.0) -> torch.Tensor:
    """The likeliest path of each sample, less a price for every layer it runs.

    Args:
        probabilities: [N, L], that each layer is skipped.
        paths: [K, L] bool.
        price: of a layer, in nats of likelihood; below 0 layers that run are worth something.

    Returns:
        [N] int64, index of the path.
    """
    probabilities = probabilities.double().clamp(1e-6, 1 - 1e-6)
    skips = paths.double()
    likelihood = probabilities.log() @ skips.T + (1 - probabilities).log() @ (1 - skips).T
    return (likelihood - price * (1 - skips).sum(1)).argmax(1)
