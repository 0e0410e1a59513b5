"""Open addressing in PyTorch, with buckets of four slots and one row of counts per slot."""

from __future__ import annotations

import torch

from geep_triton.ops.reference.ngrams import EMPTY, mix64

BUCKET = 4


def insert_add(
    slots: torch.Tensor,
    counts: torch.Tensor,
    probes: int,
    keys: torch.Tensor,
    exits: torch.Tensor,
    weights: torch.Tensor | None,
    max_probes: int,
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """Add to the counts of (key, exit) pairs. New keys take free slots.

    Args:
        slots: [capacity] int64 keys, EMPTY if free. The capacity is a power of two of at least one bucket.
        counts: [capacity, E] int64.
        probes: longest search so far, in buckets.
        keys: [M] int64.
        exits: [M] int64.
        weights: [M] int64 to add, or None for 1 each.
        max_probes: number of buckets to try for a key before giving up.

    Returns:
        The new slots, the new counts, the longest search, and the number of keys that found no slot. If this number is not 0,
            the table is incomplete and must not be used. The slot of a key may differ between implementations, its counts may
            not.
    """
    slots = slots.clone()
    last_bucket = slots.numel() // BUCKET - 1
    distinct, which = torch.unique(keys, return_inverse=True)
    new = distinct[lookup(slots, probes, distinct) == slots.numel()]
    if new.numel() > (slots == EMPTY).sum():
        return slots, counts, probes, new.numel()
    for step in range(min(max_probes, last_bucket + 1)):
        for place in range(BUCKET):
            if not new.numel():
                break
            slot = ((mix64(new) + step) & last_bucket) * BUCKET + place
            free = slots[slot] == EMPTY
            slots[slot[free]] = new[free]  # if several keys want one slot, one of them wins and the others continue
            placed = slots[slot] == new
            probes = max(probes, step + 1) if placed.any() else probes
            new = new[~placed]
    rows = lookup(slots, probes, distinct)[which]
    found = rows < slots.numel()
    weights = torch.ones_like(keys) if weights is None else weights
    flat = torch.zeros(counts.numel(), dtype=torch.int64, device=counts.device)
    flat.index_add_(0, rows[found] * counts.shape[1] + exits[found], weights[found])
    return slots, counts + flat.view_as(counts), probes, int((~found).sum())


def lookup(slots: torch.Tensor, probes: int, keys: torch.Tensor) -> torch.Tensor:
    """See `geep_triton.ops.hash_table.lookup`."""
    buckets = slots.view(-1, BUCKET)
    home = mix64(keys) & (len(buckets) - 1)
    rows = torch.full_like(keys, slots.numel())
    pending = torch.nonzero(keys != EMPTY)[:, 0]
    for step in range(probes):
        if not pending.numel():
            break
        bucket = (home[pending] + step) & (len(buckets) - 1)
        stored = buckets[bucket]
        hit, place = (stored == keys[pending, None]).max(1)
        rows[pending[hit]] = bucket[hit] * BUCKET + place[hit]
        # Keys are never removed, so a bucket with a free slot ends the search.
        pending = pending[~hit & (stored != EMPTY).all(1)]
    return rows
