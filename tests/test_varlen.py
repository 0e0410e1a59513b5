"""Attention by offsets gives the answers of attention by masks; on a CPU it runs text by text."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.modeling.varlen import attend, varlen_layers


@pytest.mark.parametrize("policy", ["full", "threshold:0.8", "patience:2", "predicted", "verified:0.8"])
@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_policies_answer_as_with_masks(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    engine = Engine(model, tokenizer, policy, token_budget=token_budget)
    expected = engine.predict(texts)
    engine._twin = varlen_layers(model)
    result = engine.predict(texts)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=0)
    assert model.config._attn_implementation == "sdpa"  # the model itself is as it was


def test_skip_gates(make_model, tokenizer, texts):
    engine = Engine(make_model(skip_gate="mean", skip_gate_bias=0.0), tokenizer)
    expected = engine.predict(texts)
    engine._twin = varlen_layers(engine.model)
    result = engine.predict(texts)
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=0)


def test_what_stands_in_the_padding_is_never_read(model):
    other, mask = varlen_layers(model), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    hidden = torch.randn(3, 4, model.config.hidden_size)
    offsets = other.layer_mask(hidden, mask)
    assert offsets.tolist() == [0, 2, 4, 8, 8, 9, 12]
    spoiled = torch.where(mask.bool()[:, :, None], hidden, 1e4)
    with torch.inference_mode():
        expected = model.run_layer(1, hidden, model.layer_mask(hidden, mask))
        for states in (hidden, spoiled):
            got = other.run_layer(1, states, offsets)
            torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


def test_no_padding_no_offsets():
    query, key, value = (torch.randn(2, 3, 5, 4) for _ in range(3))
    whole, _ = attend(None, query, key, value, None)
    by_offsets, _ = attend(None, query, key, value, torch.tensor([0, 5, 5, 10, 10], dtype=torch.int32))
    assert whole.shape == (2, 5, 3, 4)
    torch.testing.assert_close(by_offsets, whole)


def test_where_it_is_refused(model, make_model, tokenizer):
    with pytest.raises(ValueError, match="varlen=True is for models on a GPU, got one on cpu"):
        Engine(model, tokenizer, varlen=True)
    with pytest.raises(ValueError, match="varlen and graphs do not go together"):
        Engine(model, tokenizer, varlen=True, graphs=True)
    model.config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="varlen=True needs attn_implementation 'sdpa', got 'eager'"):
        varlen_layers(model)
