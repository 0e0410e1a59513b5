"""Pools: every sample answered once, in order, never forced; memory bounded; and when waiting pays."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton import Engine, MultiExitBert
from geep_triton.engine.batch import Batch
from geep_triton.engine.batching import schedule
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.pools import Pools
from geep_triton.engine.run import WindowRun
from geep_triton.engine.scorer import Scorer
from geep_triton.policies.leave import ExitRule, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.runners.compiled import CompiledRunner
from geep_triton.runners.padded import PaddedRunner, PaddedStates, Padding
from geep_triton.tokens.ragged import Tokens
from tests.conftest import WORDS, tiny_config

SAMPLES = st.lists(st.lists(st.integers(5, len(WORDS) - 1), min_size=1, max_size=30), min_size=1, max_size=25)


@pytest.fixture(scope="module")
def sharp() -> MultiExitBert:
    torch.manual_seed(1)
    model = MultiExitBert(tiny_config(pooling="mean")).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    return model


@settings(max_examples=40)
@given(
    samples=SAMPLES,
    stops=st.lists(st.integers(1, 4), min_size=25, max_size=25),
    thresholds=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    token_budget=st.integers(1, 200),
    in_flight=st.integers(1, 3),
)
def test_any_window_is_answered_once_where_the_rule_says_in_bounded_memory(
    sharp, samples, stops, thresholds, token_budget, in_flight
):
    tokens = Tokens.from_lists(samples)
    rule = ExitRule(dict(zip((1, 2, 3), thresholds, strict=True)))
    stops = torch.tensor(stops[: len(samples)])
    runner = PaddedRunner(sharp)
    pools, layers = Pools(runner, token_budget), WindowLayers(runner, tokens)
    with torch.no_grad():
        run = WindowRun(layers, Scorer(rule, layers), pools=pools, in_flight=in_flight)
        answers = list(run.answers(schedule(stops, tokens.lengths, token_budget)))
        ids, mask, _ = tokens.padded(torch.arange(len(samples)), 0)
        logits = torch.stack(sharp(ids, mask, output_exit_logits=True).exit_logits, dim=1)
    rows = torch.cat([answer.rows for answer in answers])
    assert sorted(rows.tolist()) == list(range(len(samples)))
    longest = int(tokens.lengths.max())
    assert pools.most_held <= 3 * 2 * max(token_budget, longest)

    fixed = SimpleNamespace(check=lambda model, tokenizer: None, stops=lambda model, tokens: stops)
    expected = simulate(sharp, Policy(fixed, Sure(thresholds)), tokens, logits) + 1
    for answer in answers:
        assert (expected[answer.rows] == answer.exit_layer).all()
        torch.testing.assert_close(answer.logits, logits[answer.rows, answer.exit_layer - 1], atol=1e-5, rtol=0)


@settings(max_examples=15)
@given(
    samples=SAMPLES, window=st.integers(1, 30), token_budget=st.integers(1, 300), regroup=st.sampled_from(["auto", "always"])
)
def test_windows_and_budgets_never_change_an_answer(sharp, tokenizer, samples, window, token_budget, regroup):
    rows = [{"input_ids": sample} for sample in samples]
    expected = Engine(sharp, tokenizer, "threshold:0.8,regroup=never").predict(rows)
    engine = Engine(sharp, tokenizer, f"threshold:0.8,regroup={regroup}", window=window, token_budget=token_budget)
    engine.__dict__["layer_costs"] = LayerCosts(((100, 1.0),), 0.001)  # measuring it each time would take long
    result = engine.predict(rows)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=1e-5, rtol=0)


def batch(layer, rows, lengths, width):
    """Samples of these numbers after a layer, their states the numbers, padded to `width`."""
    hidden = torch.tensor(rows, dtype=torch.float32).view(-1, 1, 1).expand(len(rows), width, 2).contiguous()
    lengths = torch.tensor(lengths)
    states = PaddedStates(hidden, Padding(lengths, (torch.arange(width) < lengths[:, None]).long()))
    return Batch(torch.tensor(rows), states, layer + 1, layer)


def pools_of(sharp, token_budget):
    return Pools(PaddedRunner(sharp), token_budget)


def test_pools_give_the_deepest_full_batch_first_and_the_shallowest_rest(sharp):
    pools = pools_of(sharp, 16)
    assert pools.hold(batch(1, [0, 1, 2, 3], [4] * 4, 4))
    assert pools.most_held == 16
    assert pools.hold(batch(2, [4, 5, 6], [4] * 3, 4))
    assert pools.hold(batch(2, [7, 8], [4] * 2, 4))
    full = pools.take_full()
    assert (full.layer, full.stop, full.rows.tolist()) == (2, 3, [4, 5, 6, 7])
    assert full.states.hidden[:, 0, 0].tolist() == [4, 5, 6, 7]
    assert pools.take_full().layer == 1
    assert pools.take_full() is None
    rest = pools.take_rest()
    assert (rest.layer, rest.stop, rest.rows.tolist()) == (2, 3, [8])
    assert pools.take_rest() is None


def test_a_full_pool_runs_before_what_is_planned_and_a_rest_only_alone(sharp):
    pools, planned = pools_of(sharp, 16), iter([batch(0, [9], [4], 4)])
    assert pools.hold(batch(1, [0, 1, 2, 3, 4], [4] * 5, 4))
    assert pools.next_batch(planned, alone=True).rows.tolist() == [0, 1, 2, 3]
    assert pools.next_batch(planned, alone=True).rows.tolist() == [9]
    assert pools.next_batch(planned, alone=False) is None
    assert pools.next_batch(planned, alone=True).rows.tolist() == [4]
    assert pools.next_batch(planned, alone=True) is None


def test_survivors_wait_where_the_costs_say_so(sharp):
    pools = Pools(PaddedRunner(sharp), 1000, costs=COSTS)
    assert pools.hold(replace(batch(1, [0, 1], [25] * 2, 25), stop=4))  # alone 3 s, in a full batch .75 s
    assert not pools.hold(replace(batch(1, [2, 3], [500] * 2, 500), stop=4))  # full already
    assert pools.take_rest().rows.tolist() == [0, 1]


def test_batches_of_different_lengths_are_padded_to_the_longest_real_one(sharp):
    pools = pools_of(sharp, 100)
    pools.hold(batch(1, [0, 1], [3, 2], 9))
    pools.hold(batch(1, [2], [5], 5))
    merged = pools.take_rest()
    assert merged.states.hidden.shape == (3, 5, 2)
    assert merged.states.padding.attention_mask.sum(1).tolist() == [3, 2, 5]


def test_a_sample_longer_than_the_budget_goes_alone(sharp):
    pools = pools_of(sharp, 4)
    pools.hold(batch(1, [0, 1], [9, 2], 9))
    assert pools.take_full().rows.tolist() == [0]
    assert pools.take_rest().rows.tolist() == [1]


@torch.inference_mode()
def measure(runner, token_budget):
    return LayerCosts.measure(runner, token_budget)


COSTS = LayerCosts(((100, 1.0), (200, 1.1), (1000, 5.0)), move=0.0001)


@pytest.mark.parametrize(("tokens", "seconds"), [(1, 1.0), (100, 1.0), (150, 1.05), (600, 3.05), (1000, 5.0), (2000, 10.0)])
def test_layer_costs_between_the_measured_points(tokens, seconds):
    assert COSTS.layer(tokens) == pytest.approx(seconds)


def test_regrouping_pays_for_small_batches_that_go_far():
    assert COSTS.regrouping_pays(50, 50, 3)  # alone 3 s, in a full batch .75 s
    assert not COSTS.regrouping_pays(1000, 1000, 3)  # full already
    dear = LayerCosts(COSTS.points, move=1.0)
    assert not dear.regrouping_pays(50, 50, 3)
    linear = LayerCosts(((1, 0.005), (1000, 5.0)), move=1e-6)
    assert not linear.regrouping_pays(500, 500, 3)  # nothing is lost by being small


def test_a_stop_that_is_shared_speaks_for_waiting():
    linear = LayerCosts(((1, 0.005), (1000, 5.0)), move=1e-6)
    assert not linear.regrouping_pays(500, 500, 1)
    stopping = LayerCosts(linear.points, linear.move, stop=0.5)
    assert stopping.regrouping_pays(500, 500, 1)  # alone a whole stop, together half of one
    assert not stopping.regrouping_pays(1000, 1000, 1)
    assert not stopping.regrouping_pays(1000, 3000, 1)  # padded beyond a full batch: nothing is shared
    assert LayerCosts(linear.points, 0.0, score=0.25, stop=0.5).stop_layers == pytest.approx(0.35)


def test_costs_are_measured_on_states_that_are_not_zero(sharp, monkeypatch):
    runner = PaddedRunner(sharp)
    seen, run_layer = [], runner.run_layer
    monkeypatch.setattr(runner, "run_layer", lambda *given: seen.append(given[1]) or run_layer(*given))
    before = torch.random.get_rng_state()
    measure(runner, 256)
    assert all(bool(states.std() > 0.5) for states in seen)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_measuring_costs_makes_no_compiled_layer_compile_again(make_model):
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = CompiledRunner(make_model(), backend=backend)
    known = len(graphs)
    measure(compiled, 64)
    assert len(graphs) == known


def test_costs_of_a_regression_model(make_model):
    assert measure(PaddedRunner(make_model(num_labels=1)), 64).stop > 0


def test_costs_are_measured_where_the_model_is(sharp):
    costs = measure(PaddedRunner(sharp), 256)
    assert [tokens for tokens, _ in costs.points][-1] == 256
    assert all(seconds > 0 for _, seconds in costs.points)
    assert costs.move > 0
    assert costs.stop > 0


@pytest.mark.parametrize(
    "text", ["threshold:0.8", "patience:1", "patience:2,threshold=0.9", "threshold:0.7,criterion=margin,layers=2"]
)
def test_simulation_is_what_the_engine_does(model, tokenizer, texts, text):
    policy = parse_policy(text)
    engine = Engine(model, tokenizer, policy)
    result = engine.predict(texts)
    record = engine.every_exit(texts)
    simulated = simulate(model, policy, record.tokens, record.logits)
    assert (simulated + 1).tolist() == result.exit_layers.tolist()
