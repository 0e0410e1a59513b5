"""Exit heads against hand-written ones, and their blindness to padding."""

from __future__ import annotations

import math

import pytest
import torch

from geep_triton import MultiExitBert
from geep_triton.modeling.heads import HEAD_CLASSES, AttentionHead, build_heads, pool
from tests.conftest import tiny_config


@pytest.mark.parametrize("kind", HEAD_CLASSES)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_padding_never_reaches_the_logits(kind, pooling):
    head = HEAD_CLASSES[kind](tiny_config(), pooling).eval()
    hidden = torch.randn(2, 5, 32)
    mask = torch.ones(2, 5, dtype=torch.int64)
    padded = torch.cat([hidden, torch.full((2, 3, 32), 1e4)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(2, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(head(padded, padded_mask), head(hidden, mask), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_attention_head_equals_a_loop(pooling):
    config = tiny_config(head_size=8, head_attention_heads=2)
    head = AttentionHead(config, pooling).eval()
    hidden, length = torch.randn(1, 6, 32), 4
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])

    x = torch.tanh(head.reduce(hidden[0, :length]))
    query = head.query(x)
    key, value = head.key_value(x)[:, :8], head.key_value(x)[:, 8:]
    rows = []
    for token in range(length):
        parts = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = [float(query[token, part] @ key[other, part]) / math.sqrt(4) for other in range(length)]
            weights = torch.tensor(scores).softmax(0)
            parts.append(sum(weights[other] * value[other, part] for other in range(length)))
        rows.append(head.output(torch.cat(parts)))
    pooled = rows[0] if pooling == "cls" else torch.stack(rows).mean(0)
    expected = head.classifier(torch.tanh(head.dense(pooled)))
    torch.testing.assert_close(head(hidden, mask)[0], expected, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_attention_heads_start_with_xaviers_initialisation(make_model):
    model = make_model(initializer_range=0.001)
    for head in model.heads.values():
        for layer in (head.reduce, head.query, head.key_value, head.output, head.dense, head.classifier):
            bound = math.sqrt(6 / (layer.in_features + layer.out_features))
            assert 0.5 * bound < float(layer.weight.abs().max()) <= bound
            assert float(layer.bias.abs().max()) == 0.0
    assert float(model.bert.encoder.layer[0].output.dense.weight.std()) < 0.002


@torch.no_grad()
def test_new_heads_of_a_loaded_backbone_too(minilm_path):
    weight = MultiExitBert.from_pretrained(minilm_path).heads["1"].reduce.weight
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (384 + 128)), rel=0.02)


def test_one_head_per_exit_and_another_kind_for_the_last():
    heads = build_heads(tiny_config(exit_layers=[1, 3, 4], head="linear", last_head="pooler"))
    assert {layer: type(head).__name__ for layer, head in heads.items()} == {
        "1": "LinearHead",
        "3": "LinearHead",
        "4": "PoolerHead",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("length", [3, 257, 300, 509])
def test_means_of_half_precision_are_taken_in_float32(dtype, length):
    """Counts and shares rounded to 8 bits would scale every mean by up to .4 %."""
    states = (torch.randn(4, length + 3, 64) + 1).to(dtype)
    mask = (torch.arange(length + 3) < length).long().expand(4, -1)
    expected = states[:, :length].double().mean(1)
    # One rounding, that of the result.
    bound = torch.finfo(dtype).eps / 2 * expected.abs() + 1e-6
    assert ((pool(states, mask, "mean").double() - expected).abs() <= bound).all()
