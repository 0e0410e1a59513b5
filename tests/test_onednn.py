"""Layers packed by oneDNN: their shapes, and what cannot be packed. What else does not go together."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from geep_triton import Engine
from geep_triton.runners.make import DTYPES, FLOATS, RUNNERS, check_goes_together, make_runner
from geep_triton.runners.onednn.linear import OnednnLinear


@pytest.mark.parametrize("shape", [(1, 1, 64), (3, 5, 64), (7, 64), (5, 16, 64), (5, 17, 64)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_packed_linear(shape, bias, activation):
    linear, states = torch.nn.Linear(64, 48, bias=bias), 3 * torch.randn(shape)
    with torch.inference_mode():
        expected = torch.nn.functional.gelu(linear(states)) if activation == "gelu" else linear(states)
        torch.testing.assert_close(OnednnLinear(linear, activation)(states), expected, atol=1e-5, rtol=1e-5)


def test_packed_linear_meets_few_numbers_of_rows(monkeypatch):
    """oneDNN builds a kernel for each: of all batches up to 1,024 rows there are no more than it keeps."""
    met, product = set(), torch.ops.mkldnn._linear_pointwise

    def spied(rows, *others):
        met.add(len(rows))
        return product(rows, *others)

    laid_out = OnednnLinear(torch.nn.Linear(4, 4))
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", spied)
    with torch.inference_mode():
        for count in range(1, 1025):
            assert laid_out(torch.ones(count, 4)).shape == (count, 4)
    assert len(met) == 66


@pytest.mark.parametrize("hidden_act", ["relu", "gelu_new"])
def test_other_activations_within_the_product_or_after_it(make_model, tokenizer, texts, hidden_act):
    model = make_model(hidden_act=hidden_act)
    expected, got = (Engine(model, tokenizer, runner=runner).predict(texts).logits for runner in ("torch", "onednn"))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_skip_gates_of_a_packed_model(make_model, tokenizer, texts):
    gated = make_model(skip_gate="attention", skip_gate_size=8, skip_gate_bias=0.0)
    expected, got = (Engine(gated, tokenizer, "full", runner=runner).predict(texts) for runner in ("torch", "onednn"))
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)
    assert torch.equal(got.skipped, expected.skipped)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"runner": "onednn", "dtype": "float16"},
            "'onednn' on cpu runs in float32, bfloat16, int8, got dtype 'float16': oneDNN multiplies float16 on few CPUs",
        ),
        ({"runner": "torch", "dtype": "int8"}, "got dtype 'int8': int8 is for runner 'onednn' on a CPU"),
        ({"runner": "compiled", "dtype": "int8"}, "got dtype 'int8': int8 is for runner 'onednn' on a CPU"),
        ({"runner": "packed"}, "runner 'packed' is for models on cuda, got one on cpu"),
        ({"runner": "graphs"}, "runner 'graphs' is for models on cuda, got one on cpu: CUDA graphs need a CUDA device"),
        ({"runner": "fast"}, "unknown runner 'fast'; known: auto, compiled, graphs, onednn, packed, torch"),
    ],
    ids=str,
)
def test_what_does_not_go_together(model, tokenizer, settings, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, **settings)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("name", RUNNERS)
def test_whatever_does_not_go_together_has_a_reason(name, device):
    model = SimpleNamespace(device=torch.device(device), dtype=torch.float32)
    dtypes = RUNNERS[name].get(device, FLOATS if name == "torch" else ())
    for dtype in dtypes:
        check_goes_together(model, name, dtype)
    for dtype in set(DTYPES) - set(dtypes):
        message = rf"got dtype '{dtype}': \w+" if dtypes else rf"got one on {device}: \w+"
        with pytest.raises(ValueError, match=message):
            check_goes_together(model, name, dtype)


def test_where_onednn_cannot_be_had(model, make_model, tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="'onednn' is for models on cpu, got one on meta"):
        make_runner(make_model().to("meta"), "onednn")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="comes without oneDNN's linear layers"):
        Engine(model, tokenizer, runner="onednn")
    assert make_runner(model, in_place=True).name == "torch"
