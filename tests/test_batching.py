"""The schedule: nothing lost, nothing over budget, exits and lengths together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton.engine.batching import schedule

SAMPLES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 50)), min_size=1, max_size=80)


@given(SAMPLES, st.integers(1, 300), st.integers(1, 300))
def test_properties(samples, budget, batch_cost):
    exits, lengths = (torch.tensor(column) for column in zip(*samples, strict=True))
    plan = schedule(exits, lengths, budget, batch_cost=batch_cost)
    assert sorted(plan.order.tolist()) == list(range(len(samples)))
    assert (plan.bounds[0], plan.bounds[-1]) == (0, len(samples))
    tokens = 0
    for rows, layer in plan:
        assert rows.numel() >= 1
        assert set(exits[rows].tolist()) == {layer}
        padded = int(lengths[rows].max()) * rows.numel()
        assert padded <= budget or rows.numel() == 1
        tokens += padded
    assert list(plan.exits) == sorted(plan.exits, reverse=True)
    for layer in set(plan.exits):
        of_exit = [int(lengths[row]) for row in plan.order if exits[row] == layer]
        assert of_exit == sorted(of_exit, reverse=True)
    assert plan.tokens == tokens
    assert plan.padding == pytest.approx(1 - int(lengths.sum()) / tokens)


def test_batches_are_as_full_as_the_budget_allows():
    plan = schedule(torch.full((10,), 3), torch.full((10,), 8), token_budget=32)
    assert plan.bounds == (0, 4, 8, 10)
    assert plan.padding == 0.0


@pytest.mark.parametrize(("batch_cost", "bounds"), [(1, (0, 2, 6)), (8, (0, 2, 6)), (1000, (0, 6))])
def test_a_batch_ends_earlier_where_that_saves_more_padding_than_a_batch_costs(batch_cost, bounds):
    plan = schedule(torch.full((6,), 3), torch.tensor([20, 20, 5, 5, 5, 5]), token_budget=200, batch_cost=batch_cost)
    assert plan.bounds == bounds


def test_equal_samples_keep_their_order():
    plan = schedule(torch.tensor([2, 5, 2, 5]), torch.tensor([4, 4, 4, 4]), 100)
    assert plan.order.tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("exits", "lengths", "budget", "message"),
    [
        ([], [], 10, "at least one sample"),
        ([1], [0], 10, "lengths must be at least 1"),
        ([1, 2], [3], 10, "of one length, got 2 and 1"),
        ([1], [3], 0, "token_budget must be at least 1"),
    ],
)
def test_bad_arguments(exits, lengths, budget, message):
    with pytest.raises(ValueError, match=message):
        schedule(torch.tensor(exits, dtype=torch.int64), torch.tensor(lengths, dtype=torch.int64), budget)
