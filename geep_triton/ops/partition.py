"""A stable partition of rows by a flag."""

from __future__ import annotations

import torch

from geep_triton.checks import check_tensor
from geep_triton.ops.dispatch import implementation


def partition(flags: torch.Tensor, *, backend: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Order the rows so that those with a set flag come first. Both groups keep their order.

    Args:
        flags: [N] bool.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        The order [N] int64 (row indices) and the count [1] int32 (number of set flags). Triton computes both without waiting
            for the device.

    Raises:
        ValueError: `flags` is not one-dimensional.
        TypeError: `flags` is not a bool tensor.
    """
    check_tensor("flags", flags, 1, torch.bool)
    return implementation("partition", flags.device, backend).partition(flags)
