"""Which rows go first: a stable partition by a flag."""

from __future__ import annotations

import torch

from geep_triton.checks import check_tensor
from geep_triton.ops.dispatch import implementation


def partition(flags: torch.Tensor, *, backend: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose flag is set before the others, both in their order.

    Args:
        flags: [N] bool.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        order [N] int64, row indices; count [1] int32, how many flags are set. In Triton neither waits for the device.
    """
    check_tensor("flags", flags, 1, torch.bool)
    return implementation("partition", flags.device, backend).partition(flags)
