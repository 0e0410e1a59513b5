"""A hash table with open addressing and buckets of one memory sector: parallel insertion, and lookup."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose
from geep_triton.ops.kernels.hashing import BUCKET, EMPTY, find_slots, mix64


@triton.jit(do_not_specialize=["num_keys", "num_exits", "last_bucket", "max_probes"])
def insert_add_kernel(
    keys, exits, weights, slots, counts, state, num_keys, num_exits, last_bucket, max_probes,
    WEIGHTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program inserts a block of keys. Each lane tries slot after slot for its key until all keys are placed."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_keys
    key = tl.load(keys + index, mask=inside, other=EMPTY)
    pending = inside & (key != EMPTY)
    home = mix64(key) & last_bucket
    row = tl.full([BLOCK], -1, tl.int64)
    longest = tl.zeros([BLOCK], tl.int32)
    step = 0
    while (step < max_probes * BUCKET) & (tl.max(pending.to(tl.int32), 0) > 0):
        slot = ((home + step // BUCKET) & last_bucket) * BUCKET + step % BUCKET
        # Keys are never removed, so blocks of known keys need no atomics. The swap detects a slot that is no longer free.
        stored = tl.load(slots + slot, mask=pending, other=EMPTY)
        claims = pending & (stored == EMPTY)
        if tl.max(claims.to(tl.int32), 0) > 0:
            # The swap has no mask. Lanes without a claim swap a free slot for a free slot.
            free = tl.full([BLOCK], EMPTY, tl.int64)
            before = tl.atomic_cas(slots + slot, free, tl.where(claims, key, EMPTY), sem="relaxed")
            stored = tl.where(claims & (before == EMPTY), key, tl.where(claims, before, stored))
        placed = pending & (stored == key)
        row = tl.where(placed, slot, row)
        longest = tl.where(placed, step // BUCKET + 1, longest)
        pending = pending & (stored != key)
        step += 1
    tl.atomic_max(state, tl.max(longest, 0), sem="relaxed")
    tl.atomic_add(state + 1, tl.sum(pending.to(tl.int32), 0), sem="relaxed")
    place = row * num_exits + tl.load(exits + index, mask=inside, other=0)
    weight = tl.full([BLOCK], 1, tl.int64)
    if WEIGHTED:
        weight = tl.load(weights + index, mask=inside, other=0)
    tl.atomic_add(counts + place, weight, mask=row >= 0, sem="relaxed")


def insert_add(
    slots: torch.Tensor,
    counts: torch.Tensor,
    probes: int,
    keys: torch.Tensor,
    exits: torch.Tensor,
    weights: torch.Tensor | None,
    max_probes: int,
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """See `geep_triton.ops.reference.hash_table.insert_add`."""
    slots, counts = slots.clone(), counts.clone()
    state = torch.tensor([probes, 0], dtype=torch.int32, device=slots.device)
    buckets = slots.numel() // BUCKET.value
    config = choose("insert_add", keys.numel(), keys.device)
    launching.launch(
        insert_add_kernel, (triton.cdiv(keys.numel(), config.block),),
        keys.contiguous(), exits.contiguous(), keys if weights is None else weights.contiguous(), slots, counts, state,
        keys.numel(), counts.shape[1], buckets - 1, min(max_probes, buckets),
        WEIGHTED=weights is not None, BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    longest, failed = state.tolist()
    return slots, counts, longest, failed


@triton.jit(do_not_specialize=["num_keys", "last_bucket", "probes"])
def lookup_kernel(keys, slots, rows, num_keys, last_bucket, probes, BLOCK: tl.constexpr):
    """Each program looks up a block of keys."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < num_keys
    key = tl.load(keys + index, mask=inside, other=EMPTY)
    row = find_slots(slots, key, inside, last_bucket, probes)
    miss = (last_bucket + 1) * BUCKET
    tl.store(rows + index, tl.where(row < 0, miss, row), mask=inside)


def lookup(slots: torch.Tensor, probes: int, keys: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.hash_table.lookup`."""
    rows = torch.empty_like(keys, memory_format=torch.contiguous_format)
    config = choose("lookup", keys.numel(), keys.device)
    launching.launch(
        lookup_kernel, (triton.cdiv(keys.numel(), config.block),),
        keys.contiguous(), slots, rows, keys.numel(), slots.numel() // BUCKET.value - 1, probes,
        BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return rows
