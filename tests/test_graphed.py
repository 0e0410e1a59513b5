"""Recorded layers and heads give the answers of the model; a recorder that repeats the work stands in for CUDA graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton import Engine, build_exit_table
from geep_triton.modeling.compiled import compile_layers
from geep_triton.modeling.graphed import (
    FEW_TOKENS,
    LENGTHS,
    MOST_PADDING,
    MOST_TOKENS,
    SAMPLES,
    graph_layers,
    grid_shape,
)


class Recorder:
    """Runs work once as a recording's warm-up does, which changes the buffers, and keeps it to be repeated."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        work()

        def replay():
            self.replayed += 1
            work()

        return replay


def batch(samples, length, padded):
    """Random states and a mask under which, where padded, no two samples are equally long."""
    lengths = torch.arange(samples) % length + 1 if padded else torch.full((samples,), length)
    return torch.randn(samples, length, 32), (torch.arange(length) < lengths[:, None]).long()


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([64, 1024, MOST_TOKENS]))
def test_grid(samples, length, most):
    shape = grid_shape(samples, length, most)
    if samples > SAMPLES[-1] or length > LENGTHS[-1]:
        assert shape is None
        return
    whole = min(size for size in SAMPLES if size >= samples), min(size for size in LENGTHS if size >= length)
    tokens = whole[0] * whole[1]
    fits = tokens <= most and (tokens <= FEW_TOKENS or tokens <= MOST_PADDING * samples * length)
    assert shape == (whole if fits else None)


def test_grid_covers_what_it_may():
    assert SAMPLES[-1] * LENGTHS[0] >= MOST_TOKENS
    assert grid_shape(1, 512) == (1, 512)
    assert grid_shape(1, 513) is None
    assert grid_shape(3, 20) == (3, 32)
    assert grid_shape(65, 65) is None  # 96 x 96: more than twice as many tokens


def test_layers_and_heads_of_all_shapes(make_model):
    model, recorder = make_model(), Recorder()
    other = graph_layers(model, recorder)
    shapes, recorded = [(2, 5), (1, 16), (3, 16), (1, 1), (2, 33), (5, 64), (1, 16), (2, 5)], []
    for _ in range(2):
        with torch.inference_mode():
            for samples, length in shapes:
                for padded in (False, True):
                    hidden, attention_mask = batch(samples, length, padded)
                    mask = model.layer_mask(hidden, attention_mask) if padded else None
                    real = attention_mask.bool()
                    for first, last in ((1, 4), (2, 3), (4, 4), (3, 2)):
                        got = other.run_layers(first, last, hidden, mask)
                        expected = model.run_layers(first, last, hidden, mask)
                        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
                    for layer in model.config.exit_layers:
                        got = other.exit_logits(layer, hidden, attention_mask)
                        torch.testing.assert_close(got, model.exit_logits(layer, hidden, attention_mask), atol=1e-5, rtol=1e-5)
        recorded.append(recorder.recorded)
    assert recorded[0] == recorded[1]
    assert recorder.replayed > recorder.recorded
    assert "run_layers" not in vars(model)


def test_answers_of_one_batch_outlive_the_next(make_model):
    other = graph_layers(make_model(), Recorder())
    with torch.inference_mode():
        first, mask = batch(2, 5, True)
        states = other.run_layers(1, 2, first, None)
        logits = other.exit_logits(2, states, mask)
        kept = states.clone(), logits.clone()
        other.exit_logits(2, other.run_layers(1, 2, torch.randn(2, 5, 32), None), mask)
    assert torch.equal(states, kept[0])
    assert torch.equal(logits, kept[1])


def test_nan_of_one_batch_does_not_reach_the_next(make_model):
    model = make_model()
    other = graph_layers(model, Recorder())
    with torch.inference_mode():
        other.run_layers(1, 4, torch.full((2, 16, 32), float("nan")), None)
        hidden, attention_mask = batch(1, 5, False)
        got = other.run_layers(1, 4, hidden, None)
        torch.testing.assert_close(got, model.run_layers(1, 4, hidden, None), atol=1e-5, rtol=1e-5)
        got = other.exit_logits(4, hidden, attention_mask)
        torch.testing.assert_close(got, model.exit_logits(4, hidden, attention_mask), atol=1e-5, rtol=1e-5)


def test_large_batches_run_as_before(make_model):
    model, recorder = make_model(), Recorder()
    other = graph_layers(model, recorder, most_tokens=64)
    hidden, attention_mask = batch(5, 16, True)
    mask = model.layer_mask(hidden, attention_mask)
    with torch.inference_mode():
        assert torch.equal(other.run_layers(1, 4, hidden, mask), model.run_layers(1, 4, hidden, mask))
        assert torch.equal(other.exit_logits(1, hidden, attention_mask), model.exit_logits(1, hidden, attention_mask))
    assert recorder.recorded == 0


def test_new_temperatures_are_recorded_anew(make_model):
    model, recorder = make_model(), Recorder()
    other = graph_layers(model, recorder)
    hidden, mask = batch(2, 5, False)
    with torch.inference_mode():
        before = other.exit_logits(1, hidden, mask)
        known = recorder.recorded
        model.config.exit_temperatures = [2.0, 1.0, 1.0, 1.0]
        torch.testing.assert_close(other.exit_logits(1, hidden, mask), before / 2)
    # A CUDA graph holds the temperature that it was recorded with.
    assert recorder.recorded == known + 1


def test_threads_do_not_mix_their_batches(make_model):
    model = make_model()
    other = graph_layers(model, Recorder())
    batches = [torch.randn(2, 16, 32) for _ in range(4)]

    def run(hidden):
        with torch.inference_mode():
            expected = model.run_layers(1, 4, hidden, None)
            return all(torch.allclose(other.run_layers(1, 4, hidden, None), expected, atol=1e-5) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, batches))


@pytest.mark.parametrize("policy", ["full", "constant:2", "threshold:0.8", "patience:1", "predicted:mean", "verified:0.8"])
@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_engine(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    plain = Engine(model, tokenizer, policy, token_budget=token_budget)
    expected, recorder = plain.predict(texts), Recorder()
    graphed = Engine(model, tokenizer, policy, token_budget=token_budget)
    graphed._twin = graph_layers(model, recorder)
    for _ in range(2):
        result = graphed.predict(texts)
        assert result.exit_layers.tolist() == expected.exit_layers.tolist()
        torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert recorder.replayed > recorder.recorded > 0


def test_skip_gates(make_model, tokenizer, texts):
    model = make_model(skip_gate="mean")
    with torch.no_grad():
        for gate in model.gates.values():
            gate.output.weight.normal_(std=3)
    expected = Engine(model, tokenizer).predict(texts)
    graphed = Engine(model, tokenizer)
    graphed._twin = graph_layers(model, Recorder())
    result = graphed.predict(texts)
    assert 0 < int(expected.skipped.sum()) < expected.skipped.numel()
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_buffers_make_no_compiled_layer_compile_again(make_model):
    """Tensors made outside inference mode would: torch guards on it."""
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = make_model()
    compiled, _ = compile_layers(model, backend)
    known = len(graphs)
    other = graph_layers(compiled, Recorder())
    with torch.inference_mode():
        for samples, length in ((2, 5), (1, 16), (3, 16), (5, 64), (1, 33)):
            for padded in (False, True):
                hidden, attention_mask = batch(samples, length, padded)
                mask = model.layer_mask(hidden, attention_mask) if padded else None
                real = attention_mask.bool()
                got, expected = other.run_layers(1, 4, hidden, mask), model.run_layers(1, 4, hidden, mask)
                torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
    assert len(graphs) == known


def test_another_stream_is_refused(make_model, monkeypatch):
    streams = iter([1, 1, 2, 1])
    monkeypatch.setattr("geep_triton.modeling.graphed._current_stream", lambda device: next(streams))
    other = graph_layers(make_model(), Recorder())
    hidden, mask = batch(2, 16, False)
    with torch.inference_mode():
        other.run_layers(1, 2, hidden, None)
        other.exit_logits(2, hidden, mask)
        with pytest.raises(ValueError, match="graphs=True runs on one stream, 1, got a call on 2"):
            other.run_layers(1, 2, hidden, None)
        other.run_layers(1, 2, hidden, None)


def test_graphs_need_sdpa_and_a_gpu(model, make_model, tokenizer):
    eager = make_model()
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="graphs=True needs attn_implementation 'sdpa', got 'eager'"):
        Engine(eager, tokenizer, graphs=True)
    with pytest.raises(ValueError, match="graphs=True needs a model on a CUDA device, got one on cpu"):
        Engine(model, tokenizer, graphs=True)
