"""Predictor reports against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.claims.metrics import per_exit, spearman
from bench.claims.predictor_report import accuracy_at_depth, predictor_report

LAYERS = (2, 3, 6)


def rank(values):
    """Mean rank of each value, from 1."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) + 1) / 2 for v in values]


def spearman_by_hand(x, y):
    a, b = rank(x), rank(y)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cov = sum((p - mean_a) * (q - mean_b) for p, q in zip(a, b, strict=True))
    return cov / (sum((p - mean_a) ** 2 for p in a) * sum((q - mean_b) ** 2 for q in b)) ** 0.5


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=3, max_size=30))
def test_spearman_equals_a_loop(pairs):
    x, y = (list(column) for column in zip(*pairs, strict=True))
    result = spearman(torch.tensor(x), torch.tensor(y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert result != result
    else:
        assert result == pytest.approx(spearman_by_hand(x, y), abs=1e-9)


def test_report_by_hand():
    # Right answers per exit, of five samples; class 1 is right.
    right = [[1, 1, 1], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]]
    logits = torch.tensor([[[0.0, float(r) * 2 - 1] for r in row] for row in right])
    predicted, actual = torch.tensor([2, 2, 6, 3, 3]), torch.tensor([2, 3, 6, 2, 6])
    report = predictor_report(logits, torch.ones(5, dtype=torch.int64), predicted, actual, LAYERS)
    assert (report["exact_match"], report["over_prediction"], report["under_prediction"]) == pytest.approx((0.4, 0.2, 0.4))
    assert report["rank_correlation"] == pytest.approx(spearman_by_hand(predicted.tolist(), actual.tolist()))
    assert report["mean_layers"] == pytest.approx(16 / 5)
    assert report["accuracy"] == pytest.approx(2 / 5)  # right: the first and the third sample
    accuracies = [2 / 5, 2 / 5, 3 / 5]
    assert report["constant_accuracy"] == pytest.approx(2 / 5 + (3.2 - 3) / 3 * (1 / 5))
    assert report["random_accuracy"] == pytest.approx((2 * accuracies[0] + 2 * accuracies[1] + accuracies[2]) / 5)
    assert (report["threshold_accuracy"], report["threshold_mean_layers"]) == pytest.approx((4 / 5, 19 / 5))
    assert (report["oracle_accuracy"], report["oracle_mean_layers"]) == pytest.approx((4 / 5, (2 + 3 + 6 + 2 + 6) / 5))
    assert per_exit("accuracy", logits, torch.ones(5, dtype=torch.int64)) == pytest.approx(accuracies)


@pytest.mark.parametrize(("depth", "expected"), [(2.0, 0.5), (2.5, 0.6), (3.0, 0.7), (4.5, 0.8), (6.0, 0.9)])
def test_accuracy_at_depth(depth, expected):
    assert accuracy_at_depth(torch.tensor([0.5, 0.7, 0.9]), torch.tensor(LAYERS), depth) == pytest.approx(expected)


def test_one_exit_only():
    logits = torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])
    exits = torch.tensor([4, 4])
    report = predictor_report(logits, torch.tensor([1, 1]), exits, exits, (4,))
    assert (report["accuracy"], report["constant_accuracy"], report["mean_layers"]) == (0.5, 0.5, 4.0)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [([2, 4], "predicted holds layer 4, which is no exit; exits: \\[2, 3, 6\\]"), ([2], "must have 2 elements")],
)
def test_bad_reports(predicted, message):
    logits, two = torch.zeros(2, 3, 2), torch.tensor([2, 2])
    with pytest.raises(ValueError, match=message):
        predictor_report(logits, torch.tensor([0, 1]), torch.tensor(predicted), two, LAYERS)
