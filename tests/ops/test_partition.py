"""Partition and sort against Python's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.partition import counting_sort, partition

FEW = settings.get_profile("ops")


def check_partition(target, flags):
    order, count = partition(target(flags, torch.bool), backend=target.backend)
    assert order.tolist() == sorted(range(len(flags)), key=lambda row: not flags[row])
    assert count.tolist() == [sum(flags)]


@FEW
@given(flags=st.lists(st.booleans(), max_size=60))
def test_partition_is_stable(target, flags):
    check_partition(target, flags)


@pytest.mark.parametrize("flags", [[], [True], [False], [True] * 1024, [False] * 1025, [True, False] * 1500])
def test_partition_edges(target, flags):
    check_partition(target, flags)


def check_sort(target, keys, lengths, num_keys):
    order, survivors = counting_sort(target(keys, torch.int64), target(lengths, torch.int64), num_keys, backend=target.backend)
    assert order.tolist() == sorted(range(len(keys)), key=lambda row: (-keys[row], -lengths[row]))
    assert survivors.tolist() == [sum(key >= level for key in keys) for level in range(num_keys)]


@FEW
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5)), max_size=60))
def test_counting_sort_equals_pythons(target, pairs):
    check_sort(target, [key for key, _ in pairs], [length for _, length in pairs], 7)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1030])
@pytest.mark.parametrize("num_keys", [1, 13, 32, 128])
def test_counting_sort_sizes(target, rows, num_keys):
    check_sort(target, torch.randint(0, num_keys, (rows,)).tolist(), torch.randint(1, 513, (rows,)).tolist(), num_keys)


def test_counting_sort_of_one_key_and_one_length_changes_nothing(target):
    check_sort(target, [12] * 200, [7] * 200, 13)


@pytest.mark.parametrize(
    ("keys", "lengths", "num_keys", "message"),
    [
        ([0, 1], [1], 2, "keys and lengths must be of one length, got 2 and 1"),
        ([2], [1], 2, r"keys must be between 0 and 1, got 2\.\.2"),
        ([0], [1], 129, "num_keys must be between 1 and 128, got 129"),
    ],
)
def test_counting_sort_refuses(keys, lengths, num_keys, message):
    with pytest.raises(ValueError, match=message):
        counting_sort(torch.tensor(keys), torch.tensor(lengths), num_keys)


def test_partition_wants_booleans():
    with pytest.raises(TypeError, match=r"flags must be of dtype torch.bool, got torch.int64"):
        partition(torch.tensor([0, 1]))
