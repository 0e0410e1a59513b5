"""Rows taken out of a batch, of any dtype and width."""

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
    source, target, index, moved, num_rows, width, stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """A program moves a block of columns of a few rows, which begin `stride` elements after each other in the source."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = row < moved
    at = tl.load(index + row, mask=inside, other=0)
    # An index out of range reads zeros rather than memory that is not ours.
    present = inside & (at >= 0) & (at < num_rows)
    within = (column < width)[None, :]
    value = tl.load(source + at[:, None] * stride + column[None, :], mask=present[:, None] & within, other=0)
    tl.store(target + row[:, None] * width + column[None, :], value, mask=inside[:, None] & within)


def gather_rows(source: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.move_rows.gather_rows`."""
    target = source.new_empty(index.numel(), *source.shape[1:])
    size = math.prod(source.shape[1:])
    if size == 0 or index.numel() == 0:
        return target
    # Rows may lie apart, as those of a batch cut to fewer tokens do; each must be whole.
    if not source.is_contiguous() and (source.stride(0) < size or not source[:1].is_contiguous()):
        source = source.contiguous()
    row_bytes, stride_bytes = size * source.element_size(), source.stride(0) * source.element_size()
    carrier = CARRIERS[math.gcd(row_bytes, stride_bytes, source.data_ptr(), 8)]
    source, moved = (tensor.view(tensor.shape[0], size).view(carrier) for tensor in (source, target))
    width = source.shape[1]
    config = choose("move_rows", width, source.device)
    rows = max(1, 1024 // config.block)
    launching.launch(
        move_rows_kernel, (triton.cdiv(index.numel(), rows), triton.cdiv(width, config.block)),
        source, moved, index.contiguous(), index.numel(), source.shape[0], width, source.stride(0),
        ROWS=rows, BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return target
