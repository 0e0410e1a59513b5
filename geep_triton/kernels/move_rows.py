"""Rows taken out, and rows put back: one kernel for both directions, any dtype and width."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from geep_triton.kernels import launching
from geep_triton.kernels.configs import choose

# Rows are moved as the widest integers that fit them, whatever they hold.
CARRIERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}


@triton.jit(do_not_specialize=["moved", "num_rows"], do_not_specialize_on_alignment=["index"])
def move_rows_kernel(
    source, target, index, moved, num_rows, width, GATHER: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program moves a block of columns of a few rows."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < moved
    at = tl.load(index + row, mask=inside, other=0)
    # An index out of range reads zeros and writes nothing rather than touching memory that is not ours.
    present = inside & (at >= 0) & (at < num_rows)
    within = (column < width)[None, :]
    mask = present[:, None] & within
    packed, spread = row[:, None] * width + column[None, :], at[:, None] * width + column[None, :]
    if GATHER:
        tl.store(target + packed, tl.load(source + spread, mask=mask, other=0), mask=inside[:, None] & within)
    else:
        tl.store(target + spread, tl.load(source + packed, mask=mask), mask=mask)


def _move(source: torch.Tensor, target: torch.Tensor, index: torch.Tensor, num_rows: int, gather: bool) -> None:
    row_bytes = math.prod(source.shape[1:]) * source.element_size()
    if row_bytes == 0 or index.numel() == 0:
        return
    offsets = source.storage_offset() * source.element_size(), target.storage_offset() * target.element_size()
    carrier = CARRIERS[math.gcd(row_bytes, *offsets, 8)]
    source, target = (tensor.view(tensor.shape[0], -1).view(carrier) for tensor in (source, target))
    width = source.shape[1]
    config = choose("move_rows", width, source.device)
    rows = max(1, 1024 // config.block)
    launching.launch(
        move_rows_kernel, (triton.cdiv(index.numel(), rows), triton.cdiv(width, config.block)),
        source, target, index.contiguous(), index.numel(), num_rows, width,
        GATHER=gather, ROWS=rows, BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.gather_rows`."""
    target = source.new_empty(index.numel(), *source.shape[1:])
    _move(source.contiguous(), target, index, source.shape[0], gather=True)
    return target


def scatter_rows(rows: torch.Tensor, index: torch.Tensor, num_rows: int) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.scatter_rows`."""
    target = rows.new_zeros(num_rows, *rows.shape[1:])
    _move(rows.contiguous(), target, index, num_rows, gather=False)
    return target
