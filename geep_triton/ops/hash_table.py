"""A hash table from 64-bit keys to counts per exit."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_int, check_kind, check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.reference.ngrams import EMPTY

# Buckets tried for a key before the table counts as full: as it may grow, it is better grown than searched from end to end.
MAX_PROBES, MAX_PROBES_OF_LARGEST = 32, 1024
MAX_CAPACITY = 1 << 30
# No table grows beyond so many slots a key, or a few slots.
SPARSEST, FEW = 64, 16
# Above this share of taken slots a table grows.
MAX_LOAD = 0.5


@dataclass(frozen=True, eq=False)
class HashTable:
    """Open addressing, buckets of four slots (32 bytes, a memory sector).

    Attributes:
        slots: [capacity] int64 keys; `EMPTY`, the most negative int64, where free. Capacity is a power of two.
        counts: [capacity, E] int64, per slot and exit.
        probes: longest search for a key that is there, in buckets.
    """

    slots: torch.Tensor
    counts: torch.Tensor
    probes: int

    @classmethod
    def empty(cls, num_exits: int, capacity: int = 1024, device: str | torch.device = "cpu") -> HashTable:
        """A table without keys. Raises ValueError unless `capacity` is a power of two from 4 to 2**30."""
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
        """Keys [S], ascending, and their counts [S, E]."""
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
    """A table that has also counted these pairs; it grows as need be.

    Args:
        table: to start from; it is left as it is.
        keys: [M] int64, duplicates welcome, none the most negative int64.
        exits: [M] int64, index of the exit (0..E-1).
        weights: [M] int64, how often each pair counts, at least once; None: once.
        max_capacity: most slots the table may grow to.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        The new table. Its counts per key are exact; where a key stands may differ from run to run.

    Raises:
        ValueError: lengths differ, an exit out of range, a weight below 1, the reserved key, or `max_capacity` slots are not
            enough.
    """
    check_kind("table", table, HashTable)
    check_int("max_capacity", max_capacity, 4)
    check_tensor("keys", keys, 1, torch.int64)
    for name, value in {"exits": exits, "weights": weights}.items():
        if value is None and name == "weights":
            continue
        check_tensor(name, value, 1, torch.int64)
        if value.shape != keys.shape:
            raise ValueError(f"keys and {name} must be of one length, got {keys.numel()} and {value.numel()}")
    num_exits = table.counts.shape[1]
    if exits.numel() and (int(exits.min()) < 0 or int(exits.max()) >= num_exits):
        raise ValueError(f"exits must be between 0 and {num_exits - 1}, got {int(exits.min())}..{int(exits.max())}")
    if weights is not None and weights.numel() and int(weights.min()) < 1:
        raise ValueError(f"weights must be at least 1, got {int(weights.min())}")
    if (keys == EMPTY).any():
        raise ValueError(f"keys must not hold {EMPTY}, which marks free slots")

    op = implementation("hash_table", keys.device, backend)
    start, pairs = table, (keys, exits, weights)
    # Keys that collide more than chance has them collide, as made-up ones may, would let a table grow without end.
    enough = SPARSEST * max(FEW, len(table) + keys.numel())
    while True:
        # Fourfold, but no further than the largest power of two that is allowed.
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
                full = (
                    f"{failed} keys collide with others in a table of {start.capacity} slots, as no n-grams' keys do by chance"
                )
            raise ValueError(f"the table is full: {full}")
        if start is table:
            pairs = _with_old_pairs(table, keys, exits, weights)
        start = HashTable.empty(num_exits, larger, keys.device)


def _with_old_pairs(
    table: HashTable, keys: torch.Tensor, exits: torch.Tensor, weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the table holds, and the new pairs, as one list of pairs with weights."""
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
        slots: [capacity] int64, of a `HashTable`.
        probes: the table's.
        keys: [M] int64.
        backend: as for `insert_add`.

    Returns:
        [M] int64; capacity for a key that is not there: the row of the prior, where scores have one behind the last slot.
    """
    check_tensor("slots", slots, 1, torch.int64)
    check_tensor("keys", keys, 1, torch.int64)
    check_int("probes", probes, 0)
    if slots.numel() < 4 or slots.numel() & (slots.numel() - 1):
        raise ValueError(f"slots must be a power of two of at least 4, got {slots.numel()}")
    return implementation("hash_table", keys.device, backend).lookup(slots.contiguous(), probes, keys)
