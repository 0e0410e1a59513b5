"""Partition against Python's own sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.partition import partition

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


def test_partition_wants_booleans():
    with pytest.raises(TypeError, match=r"flags must be of dtype torch.bool, got torch.int64"):
        partition(torch.tensor([0, 1]))
