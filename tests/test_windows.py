"""Windows that are prepared one ahead."""

from __future__ import annotations

import threading

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.engine.windows import one_ahead


def test_items_come_in_order():
    assert list(one_ahead(iter(range(100)))) == list(range(100))
    assert list(one_ahead(iter([]))) == []
    assert list(one_ahead(iter([None, None]))) == [None, None]


def test_the_next_item_is_made_while_one_is_used():
    made = [threading.Event() for _ in range(4)]

    def items():
        for number, event in enumerate(made):
            event.set()
            yield number

    ahead = one_ahead(items())
    for number in ahead:
        if number + 1 < len(made):
            assert made[number + 1].wait(10)
        if number + 2 < len(made):
            assert not made[number + 2].is_set()  # and no other


def test_an_error_comes_in_its_turn():
    def items():
        yield 1
        yield 2
        raise ValueError("third")

    ahead = one_ahead(items())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(ahead)


def test_a_reader_who_stops_leaves_no_thread():
    before = threading.active_count()
    ahead = one_ahead(iter(range(10)))
    assert next(ahead) == 0
    ahead.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("policy", ["full", "threshold:0.8", "predicted", "predicted:0.05+threshold:0.8"])
@pytest.mark.parametrize("window", [1, 3, 100])
def test_prefetch_changes_no_answer(model, tokenizer, texts, policy, window):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    expected = Engine(model, tokenizer, policy, window=window).predict(texts)
    result = Engine(model, tokenizer, policy, window=window, prefetch=True).predict(texts)
    assert torch.equal(result.logits, expected.logits)
    assert torch.equal(result.exit_layers, expected.exit_layers)
    assert set(result.timings) == set(expected.timings)


def test_a_window_that_fails_leaves_no_thread(model, tokenizer, texts, monkeypatch):
    engine, before = Engine(model, tokenizer, window=2, prefetch=True), threading.active_count()

    def fail(window):
        raise ValueError("out of memory")

    monkeypatch.setattr(engine, "_predict_window", fail)
    with pytest.raises(ValueError, match="out of memory") as caught:
        engine.predict(texts)
    assert threading.active_count() == before, caught


def test_no_stream_on_a_cpu(model, tokenizer, texts, monkeypatch):
    def no_stream(*_):
        raise AssertionError("a CUDA stream for a model on a CPU")

    monkeypatch.setattr(torch.cuda, "stream", no_stream)
    monkeypatch.setattr(torch.cuda, "Stream", no_stream)
    assert len(Engine(model, tokenizer, prefetch=True).predict(texts)) == len(texts)


def test_prefetch_with_skip_gates(make_model, tokenizer, texts):
    model = make_model(skip_gate="mean")
    expected = Engine(model, tokenizer, window=3).predict(texts)
    result = Engine(model, tokenizer, window=3, prefetch=True).predict(texts)
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=0)


def test_prefetch_reads_one_window_further_and_raises_in_turn(model, tokenizer, texts):
    read = []

    def stream():
        for text in [*texts[:4], ""]:
            read.append(text)
            yield text

    windows = Engine(model, tokenizer, window=2, prefetch=True).predict_windows(stream())
    assert len(next(windows)) == 2
    assert len(next(windows)) == 2
    with pytest.raises(ValueError, match="sample 4 "):
        next(windows)
    assert read == [*texts[:4], ""]
    with pytest.raises(ValueError, match="expected at least one text, got none"):
        Engine(model, tokenizer, prefetch=True).predict([])
