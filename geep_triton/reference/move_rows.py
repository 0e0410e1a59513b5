"""Rows taken out of a batch."""

from __future__ import annotations

import torch


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.gather_rows`."""
    return source.index_select(0, index)
