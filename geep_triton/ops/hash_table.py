"""A hash table from 64-bit keys to counts per exit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_int, check_kind, check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.reference.ngrams import EMPTY

# Buckets to try for a key before the table counts as full. While it may still grow, growing beats a long search.
MAX_PROBES, MAX_PROBES_OF_LARGEST = 32, 1024
MAX_CAPACITY = 1 << 30
# A table does not grow beyond SPARSEST slots per key, or per FEW keys if there are fewer.
SPARSEST, FEW = 64, 16
# A table grows when the share of taken slots exceeds this.
MAX_LOAD = 0.5


@dataclass(frozen=True, eq=False)
class HashTable:
    """A hash table with open addressing and buckets of four slots (32 bytes, one memory sector).

    Attributes:
        slots: [capacity] int64 keys. A free slot is `EMPTY`, the most negative int64. The capacity is a power of two.
        counts: [capacity, E] int64, per slot and exit.
        probes: length of the longest search for an existing key, in buckets.
    """

    slots: torch.Tensor
    counts: torch.Tensor
    probes: int

    @classmethod
    def empty(cls, num_exits: int, capacity: int = 1024, device: str | torch.device = "cpu") -> HashTable:
        """A table without keys.

        Args:
            num_exits: E, at least 1.
            capacity: number of slots, a power of two from 4 to 2**30.
            device: device of the table.

        Raises:
            ValueError: a number is out of range.
            TypeError: a number is not an integer.
        """
        check_int("num_exits", num_exits, 1)
        check_int("capacity", capacity, 4, MAX_CAPACITY)
        if capacity & (capacity - 1):
            raise ValueError(f"capacity must be a power of two, got {capacity}")
        slots = torch.full((capacity,), EMPTY, dtype=torch.int64, device=device)
        return cls(slots, torch.zeros(capacity, num_exits, dtype=torch.int64, device=device), 0)

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.slots.numel()

    def __len__(self) -> int:
        return int((self.slots != EMPTY).sum())

    def items(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys [S], ascending, and their counts [S, E]."""
        keys, order = self.slots.sort()
        free = self.capacity - len(self)
        return keys[free:], self.counts[order[free:]]


def insert_add(
    table: HashTable,
    keys: torch.Tensor,
    exits: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    max_capacity: int = MAX_CAPACITY,
    backend: str | None = None,
) -> HashTable:
    """Count more pairs of a key and an exit. The table grows if necessary.

    Args:
        table: the table to start from. It is not changed.
        keys: [M] int64. Duplicates are allowed, the most negative int64 is not.
        exits: [M] int64, index of the exit (0..E-1).
        weights: [M] int64, the amount by which each pair counts, at least 1. None: 1 for each.
        max_capacity: maximum number of slots.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        The new table. Its counts per key are exact. The slot of a key may differ between runs.

    Raises:
        ValueError: lengths differ, an exit is out of range, a weight is below 1, a key is the reserved one, or `max_capacity`
            slots are not enough.
        TypeError: an argument has another type or dtype.
    """
    check_kind("table", table, HashTable)
    check_int("max_capacity", max_capacity, 4)
    check_tensor("keys", keys, 1, torch.int64)
    given = {"exits": exits} if weights is None else {"exits": exits, "weights": weights}
    for name, value in given.items():
        check_tensor(name, value, 1, torch.int64)
        if value.shape != keys.shape:
            raise ValueError(f"keys and {name} must be of one length, got {keys.numel()} and {value.numel()}")
    num_exits = table.counts.shape[1]
    if exits.numel() and (int(exits.min()) < 0 or int(exits.max()) >= num_exits):
        raise ValueError(f"exits must be between 0 and {num_exits - 1}, got {int(exits.min())}..{int(exits.max())}")
    if weights is not None and weights.numel() and int(weights.min()) < 1:
        raise ValueError(f"weights must be at least 1, got {int(weights.min())}")
    if (keys == EMPTY).any():
        raise ValueError(f"keys must not include {EMPTY}, which marks free slots")

    op = implementation("hash_table", keys.device, backend)
    start, pairs = table, (keys, exits, weights)
    # Keys that collide more often than by chance (crafted keys) would otherwise let a table grow without end.
    enough = SPARSEST * max(FEW, len(table) + keys.numel())
    while True:
        # Grow fourfold, but at most to the largest allowed power of two.
        larger = min(4 * start.capacity, 1 << (min(max_capacity, max(enough, start.capacity)).bit_length() - 1))
        grows = larger > start.capacity
        max_probes = MAX_PROBES if grows else MAX_PROBES_OF_LARGEST
        *parts, failed = op.insert_add(start.slots, start.counts, start.probes, *pairs, max_probes)
        result = HashTable(*parts)
        if not failed and (len(result) <= MAX_LOAD * result.capacity or not grows):
            return result
        if not grows:
            full = f"it may not have more than max_capacity={max_capacity} slots"
            if 4 * start.capacity <= max_capacity:
                full = f"{failed} keys collide with others in a table of {start.capacity} slots, unlike keys of n-grams"
            raise ValueError(f"the table is full: {full}")
        if start is table:
            pairs = _with_old_pairs(table, keys, exits, weights)
        start = HashTable.empty(num_exits, larger, keys.device)


def _with_old_pairs(
    table: HashTable, keys: torch.Tensor, exits: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The pairs in the table and the new pairs, as one list of pairs with weights."""
    old_keys, counts = table.items()
    row, exit_index = counts.nonzero(as_tuple=True)
    new_weights = torch.ones_like(keys) if weights is None else weights
    return (
        torch.cat([old_keys[row], keys]),
        torch.cat([exit_index, exits]),
        torch.cat([counts[row, exit_index], new_weights]),
    )


def lookup(slots: torch.Tensor, probes: int, keys: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Slot of each key.

    Args:
        slots: [capacity] int64, slots of a `HashTable`.
        probes: its longest search, in buckets.
        keys: [M] int64.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        [M] int64. For an absent key it is the capacity, which is the row of the prior in scores with one row more than slots.

    Raises:
        ValueError: the number of slots is not a power of two from 4 on, or a shape does not fit.
        TypeError: an argument has another type or dtype.
    """
    check_tensor("slots", slots, 1, torch.int64)
    check_tensor("keys", keys, 1, torch.int64)
    check_int("probes", probes, 0)
    if slots.numel() < 4 or slots.numel() & (slots.numel() - 1):
        raise ValueError(f"slots must be a power of two of at least 4, got {slots.numel()}")
    return implementation("hash_table", keys.device, backend).lookup(slots.contiguous(), probes, keys)
