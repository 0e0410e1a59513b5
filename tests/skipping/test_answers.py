"""Skipping in the engine: every policy equals running one sample at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.engine.batching import schedule
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.pools import Pools
from geep_triton.engine.run import WindowRun
from geep_triton.engine.scorer import Scorer
from geep_triton.modeling.flops import gate_flops, head_flops, layer_flops
from geep_triton.ops.backend import VARIABLE, has_triton
from geep_triton.policies.leave import ExitRule
from geep_triton.policies.skip import Skip
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.runners.padded import PaddedRunner
from geep_triton.table.paths import choose_paths
from geep_triton.tokens.ragged import Tokens
from tests.conftest import WORDS
from tests.skipping.models import BLENDS, SKIPS, sharp, with_costs
from tests.test_gates import gated


@torch.no_grad()
def one_at_a_time(model, ids, first=1, rule=None, path=None, plan=None):
    """(logits, exit layer, skipped layers) as the released code answers one sample: layer by layer, gate by gate.

    `first`: the first layer after which it may be answered, and is without a rule. `path`: skipped layers, instead of gates.
    `plan`: after its layer, which is `first`, the sample is given another first layer, unless it is answered there.
    """
    mask, last = torch.ones(1, len(ids), dtype=torch.int64), model.config.num_hidden_layers
    hidden, skipped = model.embed(torch.tensor([ids])), set()
    previous, streak = torch.tensor([-1]), torch.tensor([0], dtype=torch.int32)
    for layer in range(1, last + 1):
        gate = model.skip_gate(layer, hidden, mask)
        skips = layer in path if path is not None else gate is not None and float(gate.soft) >= 0.5
        planning = plan is not None and layer == plan.layer
        # An early head reads what its layer gives.
        skips = skips and not (rule is None and layer == first < last and not planning)
        if skips:
            skipped.add(layer)
        else:
            hidden = model.bert.encoder.layer[layer - 1](hidden, None)
        if planning:
            logits = torch.zeros(1, model.config.num_labels) if skips else model.exit_logits(layer, hidden, mask)
            first = int(plan.stops(logits, torch.tensor([not skips])))
            if first == layer:
                return logits[0], layer, skipped
            continue
        if layer == last or (rule is None and layer == first):
            return model.exit_logits(layer, hidden, mask)[0], layer, skipped
        if rule is None or layer not in rule.thresholds or layer < first or skips:
            continue
        logits = model.exit_logits(layer, hidden, mask)
        scores = rule.score(layer, logits, previous, streak)
        previous, streak = scores.prediction, scores.streak
        if bool(scores.leaves):
            return logits[0], layer, skipped
    raise AssertionError


def check(result, index, expected):
    logits, layer, skipped = expected
    assert int(result.exit_layers[index]) == layer
    assert (set() if result.skipped is None else set((result.skipped[index].nonzero()[:, 0] + 1).tolist())) == skipped
    assert int(result.layers_run[index]) == layer - len(skipped)
    torch.testing.assert_close(result.logits[index], logits, atol=1e-5, rtol=0)


POLICIES = [
    *("full", "constant:2", "predicted:mean", "allocated:0.01"),
    *("threshold:0.8,regroup=never", "threshold:0.8,regroup=always", "threshold:0.9/0.7/0.8"),
    "threshold:0.6/0.9,criterion=margin,layers=1/3,regroup=always",
    *("patience:1,regroup=always", "patience:2,threshold=0.95,regroup=always"),
    *("predicted:mean+threshold:0.8,regroup=always", "predicted:mean+threshold:0.7,layers=1/3"),
    *("predicted+patience:1", "allocated:0.01+threshold:0.8", "constant:2+patience:1,regroup=never"),
    *("risk:0.5,regroup=always", "planned:1,price=0.1", "planned:2,price=0.1,regroup=always", "planned:3,price=0.1"),
    *("planned:1,price=0.2+threshold:0.8,regroup=always", "planned:2,price=0.05+risk:0.5,regroup=never"),
]


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize(
    ("skip", "costs"),
    [("", SKIPS), ("+skip:gates", BLENDS), ("+skip:planned", None), ("+skip:planned:-0.5", None), ("+skip:never", None)],
    ids=["gates", "gates blended", "planned", "planned at a price", "never"],
)
@pytest.mark.parametrize("in_flight", [1, 3])
def test_every_policy_equals_one_sample_at_a_time(skipper, tokenizer, texts, text, skip, costs, in_flight):
    inputs = texts * 3
    table = build_exit_table(skipper, tokenizer, inputs, 0.8, progress=False, learn=("skips", "agreement", "forecasts"))
    skipper.exit_table = table
    policy = parse_policy(f"{text}{skip}")
    engine = Engine(skipper, tokenizer, policy, window=10, token_budget=40, in_flight=in_flight)
    result = with_costs(engine, costs).predict(inputs)
    for index, text in enumerate(inputs):
        ids = tokenizer(text)["input_ids"]
        tokens = Tokens.from_lists([ids])
        path = None
        if "planned" in skip:
            paths = table.learned["skips"].paths
            chosen = choose_paths(table.predict_skips(tokens), paths, policy.skip.price)
            path = set((paths[int(chosen)].nonzero()[:, 0] + 1).tolist())
        elif "never" in skip:
            path = set()
        first = int(policy.stops(skipper, tokens))
        check(result, index, one_at_a_time(skipper, ids, first, policy.rule(skipper), path, policy.plan(skipper)))


@pytest.mark.skipif(not has_triton() or torch.cuda.is_available(), reason="needs Triton's interpreter: Triton, and no GPU")
@pytest.mark.parametrize("mode", ["gates", "planned"])
def test_triton_ops_give_the_same(skipper, tokenizer, texts, mode, monkeypatch):
    """Gates, partition, moves, scores and table lookups all in Triton."""
    results = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv(VARIABLE, backend)
        skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",))
        engine = with_costs(Engine(skipper, tokenizer, f"patience:1,threshold=0.8+skip:{mode}", token_budget=40))
        results.append(engine.predict(texts))
    assert torch.equal(results[0].skipped, results[1].skipped)
    assert torch.equal(results[0].exit_layers, results[1].exit_layers)
    torch.testing.assert_close(results[0].logits, results[1].logits, atol=1e-5, rtol=0)


def test_the_comparison_above_sees_many_paths_and_exits(skipper, tokenizer, texts):
    result = Engine(skipper, tokenizer, "threshold:0.8").predict(texts)
    assert len({tuple(row) for row in result.skipped.tolist()}) >= 3
    assert torch.unique(result.exit_layers).numel() >= 3
    assert not result.skipped[:, 2].any()  # which has no gate


@pytest.fixture(scope="module")
def random_skipper() -> MultiExitBert:
    return sharp(gated("mean"))


@settings(max_examples=40)
@given(
    samples=st.lists(st.lists(st.integers(5, len(WORDS) - 1), min_size=1, max_size=30), min_size=1, max_size=20),
    stops=st.lists(st.integers(1, 4), min_size=20, max_size=20),
    thresholds=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    bias=st.sampled_from([-100.0, -1.0, 0.0, 1.0, 100.0]),
    patience=st.sampled_from([1, 2]),
    pooled=st.booleans(),
    planned=st.booleans(),
    token_budget=st.integers(1, 200),
)
@torch.no_grad()
def test_any_window(random_skipper, samples, stops, thresholds, bias, patience, pooled, planned, token_budget):
    """Nobody skips, everybody does, and all between; alone or through pools; by gates or by given paths."""
    model, tokens = random_skipper, Tokens.from_lists(samples)
    for gate in model.gates.values():
        gate.output.bias.fill_(bias)
    rule = ExitRule(dict(zip((1, 2, 3), thresholds, strict=True)), patience=patience)
    runner = PaddedRunner(model)
    layers = WindowLayers(runner, tokens, Skip("gates"), SKIPS)
    if planned:
        layers._gated, layers._paths = False, torch.tensor([[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
        layers.groups = torch.arange(len(samples)) % 3
    pools = Pools(runner, token_budget) if pooled else None
    batches = schedule(torch.tensor(stops[: len(samples)]), tokens.lengths, token_budget, layers.groups)
    answers = list(WindowRun(layers, Scorer(rule, layers), pools=pools).answers(batches))
    assert sorted(torch.cat([answer.rows for answer in answers]).tolist()) == list(range(len(samples)))
    for answer in answers:
        for row, logits in zip(answer.rows.tolist(), answer.logits, strict=True):
            path = None
            if planned:
                path = set((layers._paths[layers.groups[row]].nonzero()[:, 0] + 1).tolist())
            expected, layer, skipped = one_at_a_time(model, samples[row], stops[row], rule, path=path)
            assert answer.exit_layer == layer
            if not planned:
                assert set((layers.skipped[row].nonzero()[:, 0] + 1).tolist()) == skipped
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("mode", ["gates", "planned", "never"])
def test_simulation_and_records_are_what_the_engine_does(skipper, tokenizer, texts, text, mode):
    known = {"learn": ("skips", "agreement", "forecasts")}
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 3, 0.8, progress=False, **known)
    policy = parse_policy(f"{text}+skip:{mode}")
    engine = with_costs(Engine(skipper, tokenizer, policy, window=3))
    result, record = engine.predict(texts), engine.every_exit(texts)
    simulated = simulate(skipper, policy, record.tokens, record.logits, record.skipped)
    assert (simulated + 1).tolist() == result.exit_layers.tolist()
    torch.testing.assert_close(result.logits, record.logits[torch.arange(len(texts)), simulated], atol=1e-5, rtol=0)
    assert (record.skipped is None) == (mode == "never")
    with torch.no_grad():
        gating = "none" if mode == "never" else "hard"
        outputs = skipper(**tokenizer(texts, padding=True, return_tensors="pt"), gating=gating, output_exit_logits=True)
    if mode != "planned":
        # What training sees with hard gates is what inference gives.
        torch.testing.assert_close(record.logits, torch.stack(outputs.exit_logits, 1), atol=1e-5, rtol=0)


def test_a_table_of_a_gated_model_agrees_with_its_threshold_policy(skipper, tokenizer, texts):
    table = build_exit_table(skipper, tokenizer, texts, 0.8, progress=False)
    exits = Engine(skipper, tokenizer, "threshold:0.8").predict(texts).exit_layers
    assert table.exit_counts.tolist() == [int((exits == layer).sum()) for layer in (1, 2, 3, 4)]


def test_flops_by_hand(skipper, tokenizer, texts):
    """One batch, no padding: what each sample ran, scored and asked of gates."""
    text, config = texts[0], skipper.config
    length = len(tokenizer(text)["input_ids"])
    for costs in (SKIPS, BLENDS):
        result = with_costs(Engine(skipper, tokenizer, "threshold:0.8"), costs).predict([text] * 3)
        layer, skipped = int(result.exit_layers[0]), result.skipped[0]
        run = [number for number in range(1, layer + 1) if not skipped[number - 1]]
        scored = [number for number in run if number < 4] + ([4] if layer == 4 else [])
        assert result.flops.layers == 3 * len(run) * layer_flops(config, length)
        assert result.flops.heads == 3 * sum(head_flops(config, number, length) for number in scored)
        assert result.flops.gates == 3 * sum(number <= layer for number in (1, 2, 4)) * gate_flops(config, length)
        assert result.flops.total == result.flops.layers + result.flops.heads + result.flops.gates
    plain = Engine(skipper, tokenizer, "full+skip:never").predict([text] * 3)
    assert plain.flops.layers == 12 * layer_flops(config, length)
    assert plain.flops.gates == 0


def test_blending_is_counted_as_run(skipper, tokenizer, texts):
    """Where few skip, the whole batch runs: the answers are the same, the FLOPs are not."""
    skip, blend = (with_costs(Engine(skipper, tokenizer, "full"), costs).predict(texts) for costs in (SKIPS, BLENDS))
    torch.testing.assert_close(skip.logits, blend.logits, atol=1e-5, rtol=0)
    assert torch.equal(skip.skipped, blend.skipped)
    assert skip.flops.layers < blend.flops.layers


def test_histograms(skipper, tokenizer, texts):
    result = Engine(skipper, tokenizer, "threshold:0.8", window=3).predict(texts)
    assert result.skip_histogram == {k: int(result.skipped[:, k - 1].sum()) for k in (1, 2, 3, 4)}
    assert sum(result.histogram.values()) == len(texts)
    assert result.mean_layers == pytest.approx(result.mean_exit_layer - sum(result.skip_histogram.values()) / len(texts))
    plain = Engine(skipper, tokenizer, "full+skip:never").predict(texts)
    assert plain.skipped is None
    assert set(plain.skip_histogram.values()) == {0}


@pytest.mark.parametrize("mode", ["gates", "planned"])
def test_nobody_and_everybody_skips(skipper, tokenizer, texts, mode):
    for bias, layers_run in ((-100.0, 4), (100.0, 1)):
        for gate in skipper.gates.values():
            torch.nn.init.constant_(gate.output.bias, bias)
        skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",))
        result = Engine(skipper, tokenizer, f"full+skip:{mode}").predict(texts)
        assert result.layers_run.tolist() == [layers_run] * len(texts)  # layer 3 has no gate


def test_all_layers_skipped(tokenizer, texts):
    """Nothing runs: the last head answers from the embeddings, whatever the policy."""
    model = gated(bias=100.0)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.heads["4"](model.embed(inputs["input_ids"]), inputs["attention_mask"])
    for policy in ("full", "threshold:1.0", "patience:1"):
        result = Engine(model, tokenizer, policy).predict(texts)
        torch.testing.assert_close(result.logits, expected, atol=1e-5, rtol=0)
        assert result.mean_layers == 0
        assert result.flops.layers == 0
