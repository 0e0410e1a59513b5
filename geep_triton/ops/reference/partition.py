"""A stable partition of rows by a flag."""

from __future__ import annotations

import torch


def partition(flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.partition.partition`."""
    order = torch.cat([flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]])
    return order, flags.sum().int().view(1)
