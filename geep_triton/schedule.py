"""From exits and lengths to dense batches: a pure function."""

from __future__ import annotations

import torch

from geep_triton.checks import check_int, check_tensor
from geep_triton.ops.partition import counting_sort
from geep_triton.outputs import Schedule


def schedule(exits: torch.Tensor, lengths: torch.Tensor, token_budget: int) -> Schedule:
    """Sort samples by (exit, length), both descending, and cut batches of one exit within a token budget.

    Args:
        exits: [N] int64, the layer each sample runs to.
        lengths: [N] int64, tokens per sample, at least 1.
        token_budget: most tokens a batch may have with its padding; a longer sample gets a batch of its own.

    Returns:
        The order, the batches' bounds and exits, and the share of padding.

    Raises:
        ValueError: no samples, lengths below 1, a budget below 1, or shapes that differ.
    """
    check_tensor("exits", exits, 1, torch.int64)
    check_tensor("lengths", lengths, 1, torch.int64)
    check_int("token_budget", token_budget, 1)
    if exits.shape != lengths.shape:
        raise ValueError(f"exits and lengths must be of one length, got {exits.numel()} and {lengths.numel()}")
    if exits.numel() == 0:
        raise ValueError("exits: expected at least one sample")
    if int(lengths.min()) < 1:
        raise ValueError(f"lengths must be at least 1, got {int(lengths.min())}")

    order, _ = counting_sort(exits, lengths, int(exits.max()) + 1)
    sorted_exits, sorted_lengths = exits[order].tolist(), lengths[order].tolist()

    bounds, batch_exits, padded = [0], [], 0
    while bounds[-1] < len(sorted_exits):
        begin = bounds[-1]
        longest = sorted_lengths[begin]
        end = min(begin + max(1, token_budget // longest), len(sorted_exits))
        layer = sorted_exits[begin]
        while sorted_exits[end - 1] != layer:
            end -= 1
        bounds.append(end)
        batch_exits.append(layer)
        padded += longest * (end - begin)
    return Schedule(order, tuple(bounds), tuple(batch_exits), padded, 1.0 - sum(sorted_lengths) / padded)
