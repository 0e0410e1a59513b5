"""Which exits save more than they cost, against costs counted sample by sample."""

import pytest
import torch

from geep_triton.promises.exits_that_pay import exits_that_pay

LAYERS = (1, 2, 3, 5, 8)


def cost_of(leaves: torch.Tensor, kept: list[int], score_cost: float) -> float:
    """Mean layers and scores of a sample that is scored at the exits `kept`, in order, until it leaves."""
    total = 0.0
    for sample in leaves.tolist():
        leaving = next((place for place, exit_ in enumerate(kept) if sample[exit_]), None)
        scored = len(kept) if leaving is None else leaving + 1
        total += (LAYERS[-1] if leaving is None else LAYERS[kept[leaving]]) + score_cost * scored
    return total / len(leaves)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fewest", [0, 1])
def test_each_exit_that_is_dropped_was_the_dearest_and_all_that_stay_pay(seed, fewest):
    generator = torch.Generator().manual_seed(seed)
    leaves = torch.rand(1 + 37 * (seed % 3), 4, generator=generator) < 0.1 + 0.1 * (seed % 5)
    score_cost = 0.05 * (seed % 7)
    offered = [0, 1, 2, 3] if seed % 2 else [0, 2, 3]
    expected = list(offered)
    while len(expected) > fewest:
        without = [cost_of(leaves, [other for other in expected if other != exit_], score_cost) for exit_ in expected]
        if min(without) > cost_of(leaves, expected, score_cost) + 1e-12:
            break
        expected.pop(without.index(min(without)))
    kept = exits_that_pay(leaves, LAYERS, score_cost, offered, fewest)
    assert len(kept) >= fewest
    assert cost_of(leaves, kept, score_cost) == pytest.approx(cost_of(leaves, expected, score_cost), abs=1e-12)


def test_an_exit_where_nobody_leaves_goes_even_if_it_costs_nothing():
    leaves = torch.tensor([[False, True, False, False]] * 5)
    assert exits_that_pay(leaves, LAYERS, 0.0, range(4), fewest=0) == [1]
    assert exits_that_pay(leaves, LAYERS, 0.1, range(4), fewest=2) == [1, 3]


def test_no_exit_pays_where_a_score_costs_more_than_all_layers_that_it_saves():
    assert exits_that_pay(torch.ones(3, 4, dtype=torch.bool), LAYERS, 8.0, range(4), fewest=0) == []


@pytest.mark.parametrize(("score_cost", "kept"), [(0.1, [0, 1]), (2.0, [1]), (6.0, [])])
def test_fewer_exits_pay_the_more_a_score_costs(score_cost, kept):
    """With exit 1 alone, half of the samples save 10 layers each."""
    leaves = torch.tensor([[True, True], [False, True], [False, False], [False, False]])
    assert exits_that_pay(leaves, (1, 2, 12), score_cost, (0, 1), fewest=0) == kept
