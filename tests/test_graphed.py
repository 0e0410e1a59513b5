"""Recorded layers and heads give the answers of the model; a recorder that repeats the work stands in for CUDA graphs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton import Engine, build_exit_table
from geep_triton.runners.graphed import (
    FEW_TOKENS,
    LENGTHS,
    MOST_PADDING,
    MOST_TOKENS,
    SAMPLES,
    GraphsRunner,
    grid_shape,
)
from geep_triton.runners.padded import PaddedRunner, PaddedStates, Padding
from geep_triton.runners.parts import Parts


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


def batch(samples, length, padded=False):
    """Random states of samples of which, where padded, no two are equally long."""
    lengths = torch.arange(samples) % length + 1 if padded else torch.full((samples,), length)
    return PaddedStates(torch.randn(samples, length, 32), Padding(lengths, (torch.arange(length) < lengths[:, None]).long()))


def graphs_of(model, recorder, **settings):
    return GraphsRunner(model, Parts.copied(model), record=recorder, **settings)


def assert_same(got, expected):
    real = expected.padding.attention_mask.bool()
    torch.testing.assert_close(got.hidden[real], expected.hidden[real], atol=1e-5, rtol=1e-5)


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
    plain, other = PaddedRunner(model), graphs_of(model, recorder)
    shapes, recorded = [(2, 5), (1, 16), (3, 16), (1, 1), (2, 33), (5, 64), (1, 16), (2, 5)], []
    for _ in range(2):
        with torch.inference_mode():
            for samples, length in shapes:
                for padded in (False, True):
                    states = batch(samples, length, padded)
                    for first, last in ((1, 4), (2, 3), (4, 4), (3, 2)):
                        assert_same(other.layers(first, last, states), plain.layers(first, last, states))
                    for layer in model.config.exit_layers:
                        got, expected = other.logits(layer, states), plain.logits(layer, states)
                        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        recorded.append(recorder.recorded)
    assert recorded[0] == recorded[1]
    assert recorder.replayed > recorder.recorded


def test_answers_of_one_batch_outlive_the_next(make_model):
    other = graphs_of(make_model(), Recorder())
    with torch.inference_mode():
        states = other.layers(1, 2, batch(2, 5, True))
        logits = other.logits(2, states)
        kept = states.hidden.clone(), logits.clone()
        other.logits(2, other.layers(1, 2, batch(2, 5)))
    assert torch.equal(states.hidden, kept[0])
    assert torch.equal(logits, kept[1])


def test_nan_of_one_batch_does_not_reach_the_next(make_model):
    model = make_model()
    plain, other = PaddedRunner(model), graphs_of(model, Recorder())
    with torch.inference_mode():
        spoiled = batch(2, 16)
        spoiled.hidden.fill_(float("nan"))
        other.layers(1, 4, spoiled)
        states = batch(1, 5)
        assert_same(other.layers(1, 4, states), plain.layers(1, 4, states))
        torch.testing.assert_close(other.logits(4, states), plain.logits(4, states), atol=1e-5, rtol=1e-5)


def test_large_batches_run_as_they_are(make_model):
    model, recorder = make_model(), Recorder()
    plain, other = PaddedRunner(model), graphs_of(model, recorder, most_tokens=64)
    states = batch(5, 16, True)
    with torch.inference_mode():
        assert_same(other.layers(1, 4, states), plain.layers(1, 4, states))
        assert torch.equal(other.logits(1, states), plain.logits(1, states))
    assert recorder.recorded == 0


def test_new_temperatures_are_recorded_anew(make_model):
    model, recorder = make_model(), Recorder()
    other = graphs_of(model, recorder)
    states = batch(2, 5)
    with torch.inference_mode():
        before = other.logits(1, states)
        known = recorder.recorded
        model.exit_config.temperatures = [2.0, 1.0, 1.0, 1.0]
        torch.testing.assert_close(other.logits(1, states), before / 2)
    # A CUDA graph holds the temperature that it was recorded with.
    assert recorder.recorded == known + 1


def test_threads_do_not_mix_their_batches(make_model):
    model = make_model()
    plain, other = PaddedRunner(model), graphs_of(model, Recorder())

    def run(states):
        with torch.inference_mode():
            expected = plain.layers(1, 4, states).hidden
            return all(torch.allclose(other.layers(1, 4, states).hidden, expected, atol=1e-5) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, [batch(2, 16) for _ in range(4)]))


@pytest.mark.parametrize(
    "policy", ["full", "constant:2", "threshold:0.8", "patience:1", "predicted:mean", "predicted:0.05+threshold:0.8"]
)
@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_engine(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    expected, recorder = Engine(model, tokenizer, policy, token_budget=token_budget).predict(texts), Recorder()
    graphed = Engine(model, tokenizer, policy, runner=graphs_of(model, recorder), token_budget=token_budget)
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
    result = Engine(model, tokenizer, runner=graphs_of(model, Recorder())).predict(texts)
    assert 0 < int(expected.skipped.sum()) < expected.skipped.numel()
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_another_stream_is_refused(make_model, monkeypatch):
    streams = iter([1, 1, 2, 1])
    monkeypatch.setattr("geep_triton.runners.graphed._current_stream", lambda device: next(streams))
    other = graphs_of(make_model(), Recorder())
    states = batch(2, 16)
    with torch.inference_mode():
        other.layers(1, 2, states)
        other.logits(2, states)
        with pytest.raises(ValueError, match="runner 'graphs' runs on one stream, 1, got a call on 2"):
            other.layers(1, 2, states)
        other.layers(1, 2, states)


def test_graphs_need_sdpa(make_model):
    eager = make_model()
    eager.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="runner 'graphs' needs attn_implementation 'sdpa', got 'eager'"):
        graphs_of(eager, Recorder())
