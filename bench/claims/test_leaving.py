"""Policies followed on recorded answers cost and answer what the engine's do."""

from __future__ import annotations

import pytest
import torch

from bench.claims.leaving import Leaving, at_reduction, before, curve, exit_flops, leaving
from bench.claims.records import Record
from geep_triton import Engine
from geep_triton.modeling.flops import head_flops, layer_flops


@pytest.mark.parametrize("gated", [False, True])
def test_flops_and_answers_are_those_of_an_engine(make_model, tokenizer, texts, gated):
    """One text at a time, so that nothing is padding."""
    gates = {"skip_gate": "attention", "skip_gate_bias": 0.0} if gated else {}
    model = make_model(exit_layers=[1, 3, 4], num_hidden_layers=4, **gates)
    suffix = "+skip:gates" if gated else ""
    engine = Engine(model, tokenizer, f"full{suffix}", token_budget=1)
    found = engine.every_exit(texts)
    if gated:
        assert 0 < int(found.skipped.sum()) < found.skipped.numel()
    labels = torch.zeros(len(texts), dtype=torch.int64)
    policy = leaving(Record(found.logits, found.tokens.lengths, labels, found.skipped), model.config)
    for threshold in (None, 0.5, 0.97, 1.0):
        form = "full" if threshold is None else f"threshold:{threshold}"
        result = engine.with_policy(f"{form}{suffix}").predict(texts)
        logits, flops = policy.at(threshold)
        torch.testing.assert_close(logits, result.logits, atol=1e-5, rtol=1e-5)
        if threshold is not None:
            assert int(flops.sum()) == result.flops.total


def test_a_model_before_another():
    """Who is unsure pays for both."""
    full, full_flops = torch.eye(3), torch.full((3,), 10.0)
    policy = before(torch.tensor([0.1, 0.5, 0.9]), torch.zeros(3, 3), torch.tensor([1.0, 1.0, 2.0]), full, full_flops)
    logits, flops = policy.at(0.5)
    assert flops.tolist() == [1.0, 1.0, 12.0]
    assert logits.tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]]
    assert policy.at(None)[1].tolist() == [11.0, 11.0, 12.0]


def test_a_curve_goes_from_cautious_to_bold():
    policy = Leaving(
        torch.tensor([[0.2, 0.0], [0.8, 0.0]]), torch.eye(2)[:, None].expand(2, 2, 2), torch.tensor([[1.0, 4.0], [1.0, 4.0]])
    )
    points = curve(policy, 4.0, lambda logits: float(logits[0, 0]), thresholds=(0.1, 0.5, 0.9))
    assert [(point.threshold, point.reduction) for point in points] == [(None, 1.0), (0.1, 1.0), (0.5, 1.6), (0.9, 4.0)]
    assert at_reduction(points, 1.5) == points[2]
    assert at_reduction(points, 4.0) == points[3]
    assert at_reduction(points, 4.1) is None


def test_flops_grow_with_depth(make_model):
    config = make_model(exit_layers=[2, 4], num_hidden_layers=4).config
    found = exit_flops(config, torch.tensor([3, 7]), None)
    for text, tokens in enumerate((3, 7)):
        heads = [head_flops(config, layer, tokens) for layer in (2, 4)]
        assert found[text].tolist() == [
            2 * layer_flops(config, tokens) + heads[0],
            4 * layer_flops(config, tokens) + sum(heads),
        ]
