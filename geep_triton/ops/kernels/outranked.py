"""Which candidates of many queries cannot reach the best of their query, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose


@triton.jit
def load_scores(scores, row, inside):
    """Scores [B] float32 in which -inf stands for what is not finite, and whether they are finite."""
    x = tl.load(scores + row, mask=inside, other=-float("inf")).to(tl.float32)
    valid = (x > -float("inf")) & (x < float("inf"))  # False for NaN
    return tl.where(valid, x, -float("inf")), valid


@triton.jit
def in_order(x):
    """Integers [B] int32 that are ordered as the scores are: those of negative scores have their lower bits turned round."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def count_from(scores, begin, end, key, BLOCK: tl.constexpr):
    """How many scores of a group have a key of at least `key`."""
    count = 0
    while begin < end:
        row = begin + tl.arange(0, BLOCK)
        x, _ = load_scores(scores, row, row < end)
        count += tl.sum(((in_order(x) >= key) & (row < end)).to(tl.int32), 0)
        begin += BLOCK
    return count


@triton.jit(do_not_specialize=["top_k"])
def outranked_kernel(scores, offsets, leaving, counts, top_k, margin, BLOCK: tl.constexpr):
    """Each program handles a group. It finds the key of the `top_k`-th best score bit by bit, from the highest."""
    group = tl.program_id(0)
    begin = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    key = tl.full((), -2147483648, tl.int32)
    if end - begin > top_k:
        if count_from(scores, begin, end, 0, BLOCK) >= top_k:
            key = tl.full((), 0, tl.int32)
        bit = 1 << 30
        while bit > 0:
            if count_from(scores, begin, end, key + bit, BLOCK) >= top_k:
                key += bit
            bit >>= 1
    else:
        key = tl.full((), -2139095041, tl.int32)  # of -inf
    worst_of_best = (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    # Counted lane by lane and summed up once: a barrier of a sum between stores and loads would not order them on AMD.
    left = tl.zeros([BLOCK], tl.int32)
    invalid = tl.zeros([BLOCK], tl.int32)
    while begin < end:
        row = begin + tl.arange(0, BLOCK)
        inside = row < end
        x, valid = load_scores(scores, row, inside)
        leaves = inside & valid & (worst_of_best - x > margin)
        tl.store(leaving + row, leaves.to(tl.uint8), mask=inside)
        left += leaves.to(tl.int32)
        invalid += (inside & (valid == 0)).to(tl.int32)
        begin += BLOCK
    tl.atomic_add(counts, tl.sum(left, 0), sem="relaxed")
    tl.atomic_add(counts + 1, tl.sum(invalid, 0), sem="relaxed")


def outranked(scores: torch.Tensor, offsets: torch.Tensor, top_k: int, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `geep_triton.ops.outranked.outranked`."""
    groups = offsets.numel() - 1
    leaves = torch.empty(scores.numel(), dtype=torch.bool, device=scores.device)
    counts = torch.zeros(2, dtype=torch.int32, device=scores.device)
    config = choose("outranked", scores.numel() // max(groups, 1), scores.device)
    launching.launch(
        outranked_kernel, (groups,), scores.contiguous(), offsets.contiguous(), leaves.view(torch.uint8), counts, top_k, margin,
        BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return leaves, counts
