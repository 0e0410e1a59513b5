"""Losses of skipping against loops written by hand."""

from __future__ import annotations

import math

import pytest
import torch

from geep_triton.training.skip_losses import flops_budget_loss, inverse_gate_sum, skip_rate_loss, token_contrast

GATES = [[0.1, 0.9, 0.5], [0.2, 0.2, 0.3]]


def tensors(rows):
    return [torch.tensor(row, requires_grad=True) for row in rows]


def test_inverse_gate_sum():
    expected = 1 / sum(sum(row) / len(row) for row in GATES)
    assert float(inverse_gate_sum(tensors(GATES)).detach()) == pytest.approx(expected)


def test_skip_rate():
    mean = sum(map(sum, GATES)) / 6
    assert float(skip_rate_loss(tensors(GATES), 0.5).detach()) == pytest.approx((mean - 0.5) ** 2)
    gates = tensors(GATES)
    skip_rate_loss(gates, 0.9).backward()
    assert all((gate.grad < 0).all() for gate in gates)  # more is to be skipped


def test_flops_budget_by_hand():
    costs, layers, run, total = [100.0, 10.0, 1.0], 4, 0.0, 0.0
    for sample, cost in enumerate(costs):
        total += cost * layers
        run += cost * (layers - len(GATES))  # the ungated ones
        for row in GATES:
            run += cost * (1 - row[sample])
    loss = flops_budget_loss(tensors(GATES), torch.tensor(costs), layers, 0.3)
    assert float(loss.detach()) == pytest.approx((run / total - 0.3) ** 2)


def contrast_by_hand(queries, keys, lengths, temperature, positive_below):
    total = 0.0
    for q, k, length in zip(queries, keys, lengths, strict=True):
        unit = lambda row: [x / math.sqrt(sum(y * y for y in row)) for x in row]  # noqa: E731
        q, k = [unit(row) for row in q[:length]], [unit(row) for row in k[:length]]
        sample, counted = 0.0, 0
        for t in range(length):
            scores = [math.exp(sum(a * b for a, b in zip(q[t], other, strict=True)) / temperature) for other in k]
            below = sum(score for u, score in enumerate(scores) if positive_below or u != t)
            if below > 0:
                sample -= math.log(scores[t] / below)
                counted += 1
        total += sample / max(1, counted)
    return total / len(lengths)


@pytest.mark.parametrize("positive_below", [True, False])
def test_token_contrast(positive_below):
    queries, keys, lengths = torch.randn(4, 6, 5, dtype=torch.float64), torch.randn(4, 6, 5, dtype=torch.float64), [6, 3, 1, 2]
    mask = torch.tensor([[1] * n + [0] * (6 - n) for n in lengths])
    queries[mask == 0] = keys[mask == 0] = 1e3
    queries.requires_grad_()
    loss = token_contrast(queries, keys, mask, 0.5, positive_below)
    expected = contrast_by_hand(queries.tolist(), keys.tolist(), lengths, 0.5, positive_below)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert queries.grad.isfinite().all()
    assert (queries.grad[mask == 0] == 0).all()


def test_contrast_is_least_where_every_token_finds_itself():
    features = torch.eye(4)[None]
    mask = torch.ones(1, 4)
    assert token_contrast(features, features, mask, 0.5) < token_contrast(features, features.roll(1, 1), mask, 0.5)
