"""Compiled layers."""

from __future__ import annotations

import shutil

import pytest
import torch

from geep_triton import Engine
from geep_triton.runners.compiled import CompiledRunner


def counting_backend(graphs: list):
    """A backend of torch.compile that runs graphs as they are."""

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    return backend


def test_one_graph_serves_all_layers_and_shapes(make_model):
    model, graphs = make_model(num_hidden_layers=10), []
    other = CompiledRunner(model, backend=counting_backend(graphs))
    known = len(graphs)
    for _ in range(2):  # more than torch compiles for one function
        CompiledRunner(make_model(num_hidden_layers=1, hidden_size=16), backend=counting_backend([]))
    assert 2 <= known <= 4  # with a mask and without, for one sample and for many; not one each for ten layers
    assert other.compile_seconds > 0
    with torch.inference_mode():
        for samples, tokens in ((2, 3), (5, 7), (3, 33), (1, 9), (1, 64), (16, 2)):
            hidden = torch.randn(samples, tokens, 32)
            mask = model.layer_mask(hidden, (torch.arange(tokens) < torch.arange(1, samples + 1)[:, None]).long())
            for given in (None, mask):
                for layer in (1, 2, 10):
                    expected = model.run_layer(layer, hidden, given)
                    torch.testing.assert_close(other.run_layer(layer, hidden, given), expected)
    assert len(graphs) == known


@pytest.mark.skipif(shutil.which("g++") is None and not torch.cuda.is_available(), reason="torch.compile needs a C++ compiler")
def test_compiled_engine(model, tokenizer, texts):
    plain = Engine(model, tokenizer, "threshold:0.8", token_budget=40)
    fast = Engine(model, tokenizer, "threshold:0.8", token_budget=40, runner="compiled")
    assert fast.runner.compile_seconds > 0
    torch.testing.assert_close(fast.every_exit(texts).logits, plain.every_exit(texts).logits, atol=1e-4, rtol=1e-4)
    assert fast.predict(texts).label_ids.tolist() == plain.predict(texts).label_ids.tolist()


def test_compile_errors(model, tokenizer):
    def broken(graph, example_inputs):
        raise OSError("no compiler\nmore")

    with pytest.raises(ValueError, match="torch.compile does not work here .*no compiler"):
        CompiledRunner(model, backend=broken)
