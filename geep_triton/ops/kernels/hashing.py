"""The parts that the hash table's kernels share: the mixer and the search for a key's slot."""

from __future__ import annotations

import triton
import triton.language as tl

# Slots per bucket: 4 keys of 8 bytes fill one 32-byte memory sector.
BUCKET = tl.constexpr(4)
# The most negative int64 marks a free slot. It is never a key.
EMPTY = tl.constexpr(-(2**63))


@triton.jit
def mix64(x):
    """Murmur3's 64-bit finaliser, as in `geep_triton.ops.reference.ngrams.mix64`."""
    h = x.to(tl.uint64, bitcast=True)
    h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCD
    h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53
    return (h ^ (h >> 33)).to(tl.int64, bitcast=True)


@triton.jit
def find_slots(slots, keys, wanted, last_bucket, probes):
    """Slot of each key of a block. It is -1 for a key that is absent or not wanted.

    A bucket is read as a whole. Keys are never removed, so a bucket with a free slot ends the search.
    """
    home = mix64(keys) & last_bucket
    row = tl.full(keys.shape, -1, tl.int64)
    pending = wanted & (keys != EMPTY)
    step = 0
    while (step < probes) & (tl.max(pending.to(tl.int32), 0) > 0):
        first = ((home + step) & last_bucket) * BUCKET
        places = first[:, None] + tl.arange(0, BUCKET)[None, :]
        stored = tl.load(slots + places, mask=pending[:, None], other=EMPTY)
        row = tl.maximum(row, tl.max(tl.where((stored == keys[:, None]) & pending[:, None], places, -1), 1))
        full = tl.min((stored != EMPTY).to(tl.int32), 1) > 0
        pending = pending & (row < 0) & full
        step += 1
    return row
