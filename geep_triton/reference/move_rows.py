"""Rows taken out, and rows put back."""

from __future__ import annotations

import torch


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.gather_rows`."""
    return source.index_select(0, index)


def scatter_rows(rows: torch.Tensor, index: torch.Tensor, num_rows: int) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.scatter_rows`."""
    return rows.new_zeros(num_rows, *rows.shape[1:]).index_copy_(0, index, rows)
