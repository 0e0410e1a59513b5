"""From distributions over exits to exits."""

from __future__ import annotations

import pytest
import torch

from geep_triton.exits.decision import decide

LAYERS = (1, 3, 6)


@pytest.mark.parametrize(
    ("decision", "expected"),
    [("argmax", [1, 6, 3, 1]), ("mean", [3, 6, 6, 1]), (0.5, [1, 6, 3, 1]), (0.9, [6, 6, 6, 1]), (1.0, [6, 6, 6, 1])],
)
def test_decisions(decision, expected):
    probabilities = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    assert decide(probabilities, LAYERS, decision).tolist() == expected


def test_argmax_takes_the_shallowest_of_equals():
    assert decide(torch.tensor([[0.4, 0.4, 0.2]]), LAYERS, "argmax").tolist() == [1]


def test_mean_of_a_certain_exit_is_that_exit():
    assert decide(torch.eye(3), LAYERS, "mean").tolist() == [1, 3, 6]


def test_quantiles_never_get_shallower():
    probabilities = torch.rand(50, 3).softmax(-1)
    depths = torch.stack([decide(probabilities, LAYERS, q) for q in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)])
    assert (depths.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("decision", ["median", 0.0, 1.2, -0.1])
def test_bad_decisions(decision):
    with pytest.raises(ValueError, match="decision"):
        decide(torch.ones(1, 3) / 3, LAYERS, decision)
