"""Insertion and lookup against a dictionary."""

from __future__ import annotations

import importlib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops import hash_table
from geep_triton.ops.hash_table import HashTable, insert_add, lookup
from geep_triton.ops.reference import hash_table as reference
from geep_triton.ops.reference.ngrams import EMPTY, mix64

KEYS = st.lists(st.sampled_from([-(2**63) + 1, -1, 0, 1, 7, 2**40, 2**63 - 1]), max_size=40)
ONCE = settings.get_profile("ops")


def insert(target, table, keys, exits, weights=None, **options):
    weights = None if weights is None else target(weights, torch.int64)
    return insert_add(table, target(keys, torch.int64), target(exits, torch.int64), weights, backend=target.backend, **options)


def as_map(table):
    keys, counts = table.items()
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def count_by_hand(keys, exits, num_exits):
    pairs = Counter(zip(keys, exits, strict=True))
    return {key: [pairs[key, e] for e in range(num_exits)] for key in keys}


def find(target, table, keys):
    return lookup(table.slots, table.probes, target(keys, torch.int64), backend=target.backend).tolist()


@ONCE
@given(keys=KEYS, num_exits=st.integers(1, 5), random=st.randoms())
def test_insert_add_counts_exactly(target, keys, num_exits, random):
    exits = [random.randrange(num_exits) for _ in keys]
    empty = HashTable.empty(num_exits, 4, target.device)
    table = insert(target, empty, keys, exits)
    assert as_map(table) == count_by_hand(keys, exits, num_exits)
    assert len(empty) == 0  # the table one starts from is left as it is


def test_insert_add_many(target):
    """Heavy duplicates: half of the insertions go to three keys; the table grows from 64 slots."""
    keys = torch.where(torch.rand(6_000) < 0.5, torch.randint(0, 3, (6_000,)), torch.randint(-(2**62), 2**62, (6_000,)))
    exits = torch.randint(0, 4, (6_000,))
    table = insert(target, HashTable.empty(4, 64, target.device), keys, exits)
    assert as_map(table) == count_by_hand(keys.tolist(), exits.tolist(), 4)
    assert len(table) <= table.capacity / 2


def test_insert_add_goes_on_from_a_table(target):
    first, second = torch.randint(0, 50, (2, 400)).tolist()
    exits = torch.randint(0, 3, (800,)).tolist()
    table = insert(target, HashTable.empty(3, 128, target.device), first, exits[:400])
    table = insert(target, table, second, exits[400:])
    assert as_map(table) == count_by_hand(first + second, exits, 3)
    # ... also when it must grow on the way.
    table = insert(target, HashTable.empty(3, 4, target.device), [1], [0])
    assert as_map(insert(target, table, second, exits[400:])) == count_by_hand([1, *second], [0, *exits[400:]], 3)


def test_weights_count_several_times(target):
    table = insert(target, HashTable.empty(2, 4, target.device), [5, 6, 5], [0, 1, 0], [3, 2**40, 4])
    assert as_map(table) == {5: [7, 0], 6: [0, 2**40]}


@ONCE
@given(stored=KEYS, queries=KEYS)
def test_lookup_finds_and_misses(target, stored, queries):
    table = insert(target, HashTable.empty(1, 64, target.device), stored, [0] * len(stored))
    slots = table.slots.tolist()
    for query, row in zip(queries, find(target, table, queries), strict=True):
        assert row == table.capacity if query not in stored else slots[row] == query


@pytest.mark.parametrize("miss_rate", [0.0, 0.3, 1.0])
def test_lookup_at_any_miss_rate(target, miss_rate):
    stored = torch.arange(3000)
    table = insert(target, HashTable.empty(1, 8192, target.device), stored, torch.zeros(3000))
    queries = torch.where(torch.rand(2000) < miss_rate, -1 - torch.arange(2000), torch.randint(0, 3000, (2000,)))
    rows = torch.tensor(find(target, table, queries))
    assert torch.equal(rows == table.capacity, queries < 0)
    hits = queries >= 0
    assert torch.equal(table.slots.cpu()[rows[hits]], queries[hits])


def test_an_empty_table_and_no_queries(target):
    table = HashTable.empty(2, 4, target.device)
    assert find(target, table, [0, 1]) == [4, 4]
    assert find(target, table, []) == []
    assert as_map(insert(target, table, [], [])) == {}


def test_the_mark_of_a_free_slot_is_no_key(target):
    table = insert(target, HashTable.empty(1, 8, target.device), [1], [0])
    assert find(target, table, [EMPTY, 1])[0] == 8
    with pytest.raises(ValueError, match=f"keys must not include {EMPTY}"):
        insert(target, table, [EMPTY], [0])


def home_bucket(keys: torch.Tensor, buckets: int) -> torch.Tensor:
    return mix64(keys) & (buckets - 1)


def test_first_and_last_slot_and_wrap_around(target):
    """Nine keys whose home is the last of eight buckets fill it and go on at the first."""
    keys = torch.arange(4000)
    keys = keys[home_bucket(keys, 8) == 7][:9]
    table = insert(target, HashTable.empty(1, 32, target.device), keys, torch.zeros(9))
    assert table.capacity == 32
    assert table.probes == 3
    rows = find(target, table, keys)
    assert sorted(rows) == [0, 1, 2, 3, 4, 28, 29, 30, 31]
    absent = torch.arange(4000, 9000)
    absent = absent[home_bucket(absent, 8) == 7][:3]
    assert find(target, table, absent) == [32, 32, 32]


def test_a_full_table_serves_and_says_so(target):
    """Every slot taken: lookups end, known keys still count, and a new key is refused instead of hanging."""
    keys = list(range(16))
    full = insert(target, HashTable.empty(2, 16, target.device), keys, [0] * 16, max_capacity=16)
    assert len(full) == full.capacity == 16
    assert find(target, full, [3, 99])[1] == 16
    again = insert(target, full, [3], [1], max_capacity=16)
    assert as_map(again)[3] == [1, 1]
    with pytest.raises(ValueError, match="the table is full: .*max_capacity=16"):
        insert(target, full, [99], [0], max_capacity=16)
    assert as_map(insert(target, full, [99], [0]))[99] == [1, 0]


@pytest.mark.parametrize(
    ("keys", "exits", "weights", "message"),
    [
        ([1], [-1], None, "exits must be between 0 and 2, got -1"),
        ([1], [3], None, "exits must be between 0 and 2, got 3"),
        ([1, 2], [0], None, "keys and exits must be of one length, got 2 and 1"),
        ([1], [0], [0], "weights must be at least 1, got 0"),
        ([1], [0], [1, 2], "keys and weights must be of one length, got 1 and 2"),
    ],
)
def test_insert_add_refuses(target, keys, exits, weights, message):
    with pytest.raises(ValueError, match=message):
        insert(target, HashTable.empty(3, 4, target.device), keys, exits, weights)


@pytest.mark.parametrize("capacity", [0, 3, 12, 2**31])
def test_empty_refuses_a_capacity(capacity):
    with pytest.raises(ValueError, match="capacity must be"):
        HashTable.empty(1, capacity)


def test_a_table_that_may_grow_is_not_searched_from_end_to_end(target, monkeypatch):
    """A key that finds no place nearby makes it grow; only the largest that is allowed is searched further."""
    tried = []

    def spied(*arguments):
        room = "kernels" if target.backend == "triton" else "reference"
        module = importlib.import_module(f"geep_triton.ops.{room}.hash_table")
        return SimpleNamespace(insert_add=lambda *given: tried.append(given[-1]) or module.insert_add(*given))

    monkeypatch.setattr(hash_table, "implementation", spied)
    insert(target, HashTable.empty(1, 4, target.device), list(range(10)), [0] * 10, max_capacity=16)
    assert tried == [hash_table.MAX_PROBES, hash_table.MAX_PROBES_OF_LARGEST]
    assert hash_table.MAX_PROBES < hash_table.MAX_PROBES_OF_LARGEST


def test_more_keys_than_free_slots_fail_at_once(monkeypatch):
    """In PyTorch each step of the search is a few calls; a thousand of them for nothing made tables slow to build."""
    monkeypatch.setattr(reference, "mix64", lambda keys: pytest.fail("searched"))
    slots, counts = torch.full((8,), EMPTY), torch.zeros(8, 1, dtype=torch.int64)
    monkeypatch.setattr(reference, "lookup", lambda slots, probes, keys: torch.full_like(keys, slots.numel()))
    *_, failed = reference.insert_add(slots, counts, 0, torch.arange(9), torch.zeros(9, dtype=torch.int64), None, 1024)
    assert failed > 0


@pytest.mark.parametrize("count", [5_000, 80_000])
def test_growing_from_a_small_table_takes_a_few_passes_however_many_keys(count, monkeypatch):
    hashed, mix = [], reference.mix64
    monkeypatch.setattr(reference, "mix64", lambda keys: hashed.append(keys.numel()) or mix(keys))
    keys = -torch.randint(1, 2**62, (count,), generator=torch.Generator().manual_seed(0)).unique()
    table = insert_add(HashTable.empty(2, 1024), keys, torch.zeros_like(keys), backend="torch")
    assert len(table) == len(keys)
    assert sum(hashed) < 20 * len(keys)


def test_keys_that_collide_do_not_take_all_memory(monkeypatch):
    """Made-up keys, all of one bucket: they are searched for in a small table, or refused."""
    monkeypatch.setattr(reference, "mix64", torch.zeros_like)
    few, many = torch.arange(2_000), torch.arange(5_000)
    table = insert_add(HashTable.empty(1), few, torch.zeros_like(few), backend="torch")
    assert table.capacity <= 64 * len(few)
    assert (table.items()[1] == 1).all()
    with pytest.raises(ValueError, match="keys collide with others in a table of"):
        insert_add(HashTable.empty(1), many, torch.zeros_like(many), backend="torch")
