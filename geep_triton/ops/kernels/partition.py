"""A stable partition of rows by a flag."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose


@triton.jit
def partition_places(row, flag, ahead, total):
    """Place of each row of a block, and the number of flagged rows up to its end.

    `total` rows are flagged in all, `ahead` of them before the block.
    """
    flag = flag.to(tl.int32)
    before = ahead + tl.cumsum(flag, 0) - flag
    return tl.where(flag != 0, before, total + row - before), ahead + tl.sum(flag, 0)


@triton.jit(do_not_specialize=["num_rows"])
def partition_kernel(flags, order, count, num_rows, BLOCK: tl.constexpr):
    """One program counts the flags, then stores each row at its place. One is enough, because a batch is small."""
    total = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        flag = tl.load(flags + row, mask=row < num_rows, other=0) != 0
        total += tl.sum(flag.to(tl.int32), 0)
        begin += BLOCK
    ahead = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        inside = row < num_rows
        flag = tl.load(flags + row, mask=inside, other=0) != 0
        place, ahead = partition_places(row, flag, ahead, total)
        tl.store(order + place, row.to(tl.int64), mask=inside)
        begin += BLOCK
    tl.store(count, total)


def partition(flags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.partition.partition`."""
    order = torch.empty(flags.numel(), dtype=torch.int64, device=flags.device)
    count = torch.empty(1, dtype=torch.int32, device=flags.device)
    config = choose("partition", flags.numel(), flags.device)
    launching.launch(
        partition_kernel, (1,), flags.contiguous().view(torch.uint8), order, count, flags.numel(),
        BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return order, count
