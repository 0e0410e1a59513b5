"""Looks, unscored answers and frontiers, counted by hand."""

from __future__ import annotations

import torch

from bench.plans.outcomes import (
    Means,
    by_threshold,
    constant,
    first_agreeing,
    frontier,
    planned,
    planned_ahead,
    replanned,
)

# Three texts and four exits, of which three are early.
SCORES = torch.tensor([[0.1, 0.9, 0.9], [0.5, 0.2, 0.1], [0.9, 0.8, 0.7]])


def as_lists(outcome):
    return outcome.exits.tolist(), outcome.stops.tolist(), outcome.unscored.tolist()


def test_thresholds_at_every_exit():
    exits, stops, unscored = as_lists(by_threshold(SCORES, (0, 1, 2), torch.tensor([0.1, 0.3, 0.7])))
    assert exits == [[0, 2, 3], [0, 1, 3], [0, 0, 2]]
    assert stops == [[1, 3, 3], [1, 2, 3], [1, 1, 3]]
    assert unscored == [[False, False, True], [False, False, True], [False, False, False]]


def test_thresholds_at_some_exits():
    exits, stops, unscored = as_lists(by_threshold(SCORES, (1,), torch.tensor([0.3])))
    assert (exits, stops, unscored) == ([[3, 1, 3]], [[1, 1, 1]], [[True, False, True]])


def test_thresholds_for_each_exit_leave_out_exits():
    limits = torch.tensor([[-torch.inf, 0.3, 0.7]])
    exits, stops, unscored = as_lists(by_threshold(SCORES, (0, 1, 2), limits))
    assert (exits, stops, unscored) == ([[3, 1, 2]], [[2, 1, 2]], [[True, False, False]])


def test_thresholds_from_a_start_on():
    starts = torch.tensor([1, 0, 3])
    exits, stops, unscored = as_lists(by_threshold(SCORES, (0, 1, 2), torch.tensor([0.9, 0.3]), starts))
    assert exits == [[1, 0, 3], [3, 1, 3]]
    assert stops == [[1, 1, 0], [2, 2, 0]]
    assert unscored == [[False, False, True], [True, False, True]]


def test_constant_and_oracle():
    assert as_lists(constant(2, 3)) == ([[1, 1], [0, 0]], [[0, 0], [0, 0]], [[True, True], [True, True]])
    agrees = torch.tensor([[True, False, True], [False, False, True]])
    assert as_lists(first_agreeing(agrees)) == ([[0, 2]], [[0, 0]], [[True, True]])


def test_plans():
    agreement = torch.tensor([[0.9, 0.95, 1.0], [0.2, 0.9, 1.0]])  # of the exits from index 1 on
    exits, stops, unscored = as_lists(planned(agreement, 1, torch.tensor([0.0, 0.2])))
    assert exits == [[3, 3], [1, 2]]
    assert stops == [[1, 1], [1, 1]]
    assert unscored == [[True, True], [False, True]]
    assert as_lists(planned_ahead(agreement, torch.tensor([0.2]))) == ([[0, 1]], [[1, 1]], [[True, True]])


def test_a_replanned_text_is_looked_at_where_it_was_sent():
    early = torch.zeros(2, 3, 4)
    early[..., 3] = 1
    early[0, 0, :3] = torch.tensor([0.5, 0.5, 0.97])  # goes to exit 2, and leaves there
    early[0, 2, 2] = 0.96
    early[1, 0, :3] = torch.tensor([0.5, 0.97, 0.97])  # goes to exit 1, from there to the last one
    early[1, 1, 1:3] = torch.tensor([0.5, 0.5])
    exits, stops, unscored = as_lists(replanned(early, 0, 1.0, torch.tensor([0.05])))
    assert (exits, stops, unscored) == ([[2, 3]], [[2, 2]], [[False, True]])


def test_who_does_not_leave_goes_on():
    early = torch.zeros(1, 3, 4)
    early[..., 3] = 1
    early[0, 0, :3] = torch.tensor([0.94, 0.5, 0.97])  # its own exit is the best value, but the risk is too high
    early[0, 2, 2] = 0.5
    exits, stops, unscored = as_lists(replanned(early, 0, 1.0, torch.tensor([0.05])))
    assert (exits, stops, unscored) == ([[3]], [[2]], [[True]])


def test_costs():
    outcome = by_threshold(SCORES, (0, 1, 2), torch.tensor([0.3]))
    agrees = torch.tensor([[False, True, True, True], [True, True, True, True], [False, False, True, True]])
    means = outcome.means(agrees)
    assert torch.allclose(means.agreement, torch.tensor([2 / 3], dtype=torch.float64))
    layers, stops, unscored = (1 + 2 + 4) / 3, (1 + 2 + 3) / 3, 1 / 3
    for cost, head in ((0.05, 0.05), (2.0, 0.1)):
        expected = layers + cost * stops + head * unscored
        assert torch.allclose(means.cost(cost), torch.tensor([expected], dtype=torch.float64))


def test_the_frontier_goes_from_cautious_to_bold():
    agreement = torch.tensor([1.0, 0.99, 0.98, 0.99, 0.5, 1.0]).double()
    layers = torch.tensor([5.0, 4.0, 4.5, 3.0, 1.0, 6.0]).double()
    stops = torch.tensor([0.0, 0.0, 0.0, 2.0, 0.0, 0.0]).double()
    means = Means(agreement, layers, stops, torch.zeros(6).double())
    assert frontier(means, 0.1, 0.9).tolist() == [0, 3]
    assert frontier(means, 1.0, 0.9).tolist() == [0, 1]
    assert frontier(means, 1.0, 0.4).tolist() == [0, 1, 4]
    assert frontier(means, 1.0, 1.1).tolist() == [0]
