"""Which rows go first: a stable partition by a flag, and a sort by (exit, length)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.kernels import launching
from geep_triton.kernels.configs import choose


@triton.jit
def write_order(flags, order, count, num_rows, BLOCK: tl.constexpr):
    """Rows whose flag is set, then the others, each in their order; one program goes over all rows twice."""
    total = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        flag = tl.load(flags + row, mask=row < num_rows, other=0) != 0
        total += tl.sum(flag.to(tl.int32), 0)
        begin += BLOCK
    tl.store(count, total)
    ahead = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        inside = row < num_rows
        flag = (tl.load(flags + row, mask=inside, other=0) != 0).to(tl.int32)
        set_before = ahead + tl.cumsum(flag, 0) - flag
        place = tl.where(flag != 0, set_before, total + row - set_before)
        tl.store(order + place, row.to(tl.int64), mask=inside)
        ahead += tl.sum(flag, 0)
        begin += BLOCK


@triton.jit(do_not_specialize=["num_rows"])
def partition_kernel(flags, order, count, num_rows, BLOCK: tl.constexpr):
    """One program; a batch is small."""
    write_order(flags, order, count, num_rows, BLOCK)


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


@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def counting_sort_kernel(
    keys, lengths, order, survivors, num_rows, num_keys, LEVELS: tl.constexpr, BLOCK: tl.constexpr, OTHERS: tl.constexpr
):
    """Each row's place is the number of rows that go before it, counted (Knuth's comparison counting): no scan, no scratch."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    key = tl.load(keys + row, mask=inside, other=-1)
    length = tl.load(lengths + row, mask=inside, other=-1)
    place = tl.zeros([BLOCK], tl.int32)
    begin = 0
    while begin < num_rows:
        other = begin + tl.arange(0, OTHERS)
        present = other < num_rows
        other_key = tl.load(keys + other, mask=present, other=-1)[None, :]
        other_length = tl.load(lengths + other, mask=present, other=-1)[None, :]
        same_key = other_key == key[:, None]
        same_both = same_key & (other_length == length[:, None])
        goes_before = (other_key > key[:, None]) | (same_key & (other_length > length[:, None]))
        goes_before = goes_before | (same_both & (other[None, :] < row[:, None]))
        place += tl.sum((goes_before & present[None, :]).to(tl.int32), 1)
        begin += OTHERS
    tl.store(order + place, row.to(tl.int64), mask=inside)
    first = 0
    while first < num_keys:
        level = first + tl.arange(0, LEVELS)
        reaches = (key[:, None] >= level[None, :]) & inside[:, None]
        tl.atomic_add(survivors + level, tl.sum(reaches.to(tl.int32), 0), mask=level < num_keys, sem="relaxed")
        first += LEVELS


def counting_sort(keys: torch.Tensor, lengths: torch.Tensor, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.partition.counting_sort`."""
    num_rows = keys.numel()
    order = torch.empty(num_rows, dtype=torch.int64, device=keys.device)
    survivors = torch.zeros(num_keys, dtype=torch.int32, device=keys.device)
    config = choose("counting_sort", num_rows, keys.device)
    launching.launch(
        counting_sort_kernel, (triton.cdiv(num_rows, config.block),),
        keys.contiguous(), lengths.contiguous(), order, survivors, num_rows, num_keys,
        LEVELS=16, BLOCK=config.block, OTHERS=64, num_warps=config.warps,
    )  # fmt: skip
    return order, survivors
