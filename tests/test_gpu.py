"""The engine on a GPU gives the CPU's answers."""

from __future__ import annotations

import copy

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.engine.batching import IN_FLIGHT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("policy", ["full", "constant:2", "threshold:0.8", "predicted", "predicted:mean"])
@pytest.mark.parametrize("token_budget", [40, 10_000])
def test_policy_on_gpu_equals_cpu(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    expected = Engine(model, tokenizer, policy, token_budget=token_budget).predict(texts)
    on_gpu = copy.deepcopy(model).cuda()
    result = Engine(on_gpu, tokenizer, policy, token_budget=token_budget, dtype="float32").predict(texts)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-4, rtol=0)
    assert result.logits.device.type == "cpu"


def test_a_gpu_runs_in_half_precision_and_prefetches(model, tokenizer, texts):
    expected = Engine(model, tokenizer).predict(texts)
    engine = Engine(copy.deepcopy(model).cuda(), tokenizer)
    assert (engine.dtype, engine.prefetch, engine.in_flight) == ("bfloat16", True, IN_FLIGHT)
    torch.testing.assert_close(engine.predict(texts).probabilities, expected.probabilities, atol=3e-2, rtol=0)


@pytest.mark.parametrize("policy", ["full", "constant:2", "predicted:mean", "threshold:0.8", "threshold:0.8,regroup=always"])
@pytest.mark.parametrize("options", [{}, {"runner": "graphs"}, {"runner": "packed"}])
def test_a_window_waits_for_nothing_but_copies_on_their_way(model, tokenizer, texts, policy, options):
    """Decisions come by copies into pinned memory and their events, which torch's watch over hidden waits lets pass."""
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    engine = Engine(model.cuda(), tokenizer, policy, token_budget=40, **options)
    engine.predict(texts)  # compiles kernels, records graphs
    window = next(engine._planned_windows(texts))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            answers = list(engine._window_run(window).answers(window.batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sorted(torch.cat([answer.rows for answer in answers]).tolist()) == list(range(len(texts)))


WAYS = [
    {"runner": "graphs", "prefetch": False},
    {"runner": "torch"},
    {"runner": "compiled", "prefetch": False},
    {"runner": "graphs"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("policy", ["full", "threshold:0.8", "predicted:mean", "predicted:0.05+threshold:0.8"])
@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_ways_to_run_change_no_answer(model, tokenizer, texts, policy, way, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.cuda()
    settings = {"dtype": "float32", "token_budget": token_budget, "window": 2}
    expected = Engine(model, tokenizer, policy, prefetch=False, in_flight=1, **settings).predict(texts)
    engine = Engine(model, tokenizer, policy, **settings, **way)
    for _ in range(2):
        result = engine.predict(texts)
        assert result.exit_layers.tolist() == expected.exit_layers.tolist()
        torch.testing.assert_close(result.logits, expected.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", ["full", "threshold:0.8", "predicted:mean", "predicted:0.05+threshold:0.8"])
@pytest.mark.parametrize("token_budget", [1, 40, 10_000])
def test_layers_without_padding_change_no_answer(model, tokenizer, texts, policy, token_budget):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.cuda()
    settings = {"dtype": "bfloat16", "token_budget": token_budget, "window": 2}
    result = Engine(model, tokenizer, policy, runner="packed", **settings).predict(texts)
    at = torch.searchsorted(torch.tensor(model.config.exit_layers), result.exit_layers)
    expected = Engine(model, tokenizer, "full", **settings).every_exit(texts).logits[torch.arange(len(texts)), at]
    torch.testing.assert_close(result.probabilities, expected.softmax(-1), atol=3e-2, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_of_skip_gates(make_model, tokenizer, texts, dtype):
    model = make_model(skip_gate="mean")
    with torch.no_grad():
        for gate in model.gates.values():
            gate.output.weight.normal_(std=3)
    model.cuda()
    expected = Engine(model, tokenizer, dtype=dtype).predict(texts)
    result = Engine(model, tokenizer, dtype=dtype, runner="graphs").predict(texts)
    # In bfloat16 a gate near its threshold may fall otherwise in a batch of the grid's shape; the samples of which no gate
    # did must be as many as not, and have the same answers.
    same = (result.skipped == expected.skipped).all(1)
    assert bool(same.all()) if dtype == "float32" else int(same.sum()) >= len(texts) // 2
    tolerance = 1e-4 if dtype == "float32" else 3e-2
    torch.testing.assert_close(result.logits[same], expected.logits[same], atol=tolerance, rtol=0)


def test_graphs_follow_temperatures(model, tokenizer, texts):
    model.cuda()
    plain, graphed = (Engine(model, tokenizer, dtype="float32", runner=runner) for runner in ("torch", "graphs"))
    before = graphed.every_exit(texts).logits
    model.exit_config.temperatures = [2.0] * len(model.config.exit_layers)
    torch.testing.assert_close(graphed.every_exit(texts).logits, before / 2, atol=1e-4, rtol=0)
    torch.testing.assert_close(graphed.every_exit(texts).logits, plain.every_exit(texts).logits, atol=1e-4, rtol=0)
