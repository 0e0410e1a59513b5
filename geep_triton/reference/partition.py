"""Which rows go first."""

from __future__ import annotations

import torch


def partition(flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.partition.partition`."""
    order = torch.cat([flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]])
    return order, flags.sum().int().view(1)


def counting_sort(keys: torch.Tensor, lengths: torch.Tensor, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.partition.counting_sort`."""
    longest = lengths.max() if lengths.numel() else 0
    order = (keys * (longest + 1) + lengths).argsort(descending=True, stable=True)
    counts = torch.bincount(keys, minlength=num_keys)
    return order, counts.flip(0).cumsum(0).flip(0).int()
