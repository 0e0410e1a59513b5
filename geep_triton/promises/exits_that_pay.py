"""Which exits save more than they cost: a greedy choice on recorded samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def exits_that_pay(
    leaves: torch.Tensor, layers: Sequence[int], score_cost: float, exits: Sequence[int], fewest: int
) -> list[int]:
    """Some of the exits: as long as samples get no dearer without some exit, the one that costs most is dropped.

    Args:
        leaves: [N, E - 1] bool, whether a sample would leave at an early exit that it meets.
        layers: of the E exits.
        score_cost: of a sample at an exit, in layers.
        exits: indices of early exits, ascending.
        fewest: so many are kept at least.
    """
    kept = list(exits)
    while len(kept) > fewest:
        cost, without = _costs(leaves[:, kept], [layers[exit_] for exit_ in kept] + [layers[-1]], score_cost)
        least = int(without.argmin())
        if without[least] > cost:
            break
        del kept[least]
    return kept


def _costs(leaves: torch.Tensor, layers: Sequence[int], score_cost: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean layers that a sample takes, scores included, with all K early exits; and [K] without each.

    Without an exit, those who leave there go on to the next one where they would leave, and those who pass it save its score.

    Args:
        leaves: [N, K] bool.
        layers: K + 1 of them, those of the last exit at the end.
        score_cost: as above.
    """
    rows, count = leaves.shape
    places = torch.arange(count + 1)
    prices = torch.tensor(layers, dtype=torch.float64) + score_cost * (places + 1).clamp(max=count)
    would_leave = torch.cat([leaves, torch.ones(rows, 1, dtype=torch.bool)], 1).to(torch.uint8)
    first = would_leave.argmax(1)
    would_leave.scatter_(1, first[:, None], 0)
    second = would_leave.argmax(1)
    # Samples by the exit where they leave and the next one: two exits hold all that matters of a sample.
    pairs = torch.bincount(first * (count + 1) + second, minlength=(count + 1) ** 2).view(count + 1, count + 1).double() / rows
    left = pairs.sum(1)
    cost = left @ prices
    dearer = (pairs * (prices[None, :] - prices[:, None])).sum(1)[:count]
    scored = left.flip(0).cumsum(0).flip(0)[:count]  # those who reach each exit
    return cost, cost + dearer - score_cost * scored
