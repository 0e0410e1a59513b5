"""Skipping in the engine: every policy equals running one sample at a time; accounting; planned paths; bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton import Engine, MultiExitBert, audit, build_exit_table, calibrate
from geep_triton.engine.batching import schedule
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.pools import Pools
from geep_triton.engine.run import WindowRun
from geep_triton.modeling.flops import gate_flops, head_flops, layer_flops
from geep_triton.ops.backend import VARIABLE, has_triton
from geep_triton.policies.leave import ExitRule
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import LastLayer
from geep_triton.policies.text import format_policy, parse_policy, saved_policy
from geep_triton.promises.families import families_of
from geep_triton.promises.simulate import simulate
from geep_triton.runners.padded import PaddedRunner
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.paths import choose_paths, common_paths
from geep_triton.tokens.ragged import Tokens
from tests.conftest import WORDS
from tests.test_gates import gated

SKIPS = LayerCosts(((1, 0.001), (1000, 1.0)), move=0.0)  # a layer costs what its tokens are: leaving any out pays
BLENDS = LayerCosts(((1000, 1.0), (2000, 1.0)), move=1.0)  # it never does


@pytest.fixture
def skipper(tokenizer, texts) -> MultiExitBert:
    """A model whose gates and exits really choose: at each gate about half of the samples skip."""
    model = sharp(gated(skip_layers=[1, 2, 4]))
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        for index, gate in enumerate(model.gates.values()):
            gate.output.bias -= model(**inputs, output_gates=True).gates[index].logit().median() + 1e-3
    return model


def sharp(model):
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(2)
    return model


def with_costs(engine, costs=None):
    costs = costs or SKIPS  # measuring it each time would take long
    engine.__dict__["layer_costs"] = costs
    return engine


@torch.no_grad()
def one_at_a_time(model, ids, first=1, rule=None, path=None):
    """(logits, exit layer, skipped layers) as the released code answers one sample: layer by layer, gate by gate.

    `first`: the first layer after which it may be answered, and is without a rule. `path`: skipped layers, instead of gates.
    """
    mask, last = torch.ones(1, len(ids), dtype=torch.int64), model.config.num_hidden_layers
    hidden, skipped = model.embed(torch.tensor([ids])), set()
    previous, streak = torch.tensor([-1]), torch.tensor([0], dtype=torch.int32)
    for layer in range(1, last + 1):
        gate = model.skip_gate(layer, hidden, mask)
        skips = layer in path if path is not None else gate is not None and float(gate.soft) >= 0.5
        skips = skips and not (rule is None and layer == first < last)  # an early head reads what its layer gives
        if skips:
            skipped.add(layer)
        else:
            hidden = model.bert.encoder.layer[layer - 1](hidden, None)
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
    table = build_exit_table(skipper, tokenizer, inputs, 0.8, progress=False, learn=("skips", "agreement"))
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
        check(result, index, one_at_a_time(skipper, ids, int(policy.stops(skipper, tokens)), policy.rule(skipper), path))


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
    pools = Pools(runner, tokens, token_budget, layers.groups) if pooled else None
    plan = schedule(torch.tensor(stops[: len(samples)]), tokens.lengths, token_budget, layers.groups)
    answers = list(WindowRun(layers, tokens, rule, pools=pools).answers(plan))
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
    known = {"learn": ("skips", "agreement")}
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


@pytest.mark.filterwarnings("ignore::geep_triton.policies.policy.OneExitWarning")  # of candidates
def test_audit_and_calibration_of_a_gated_model(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    engine = with_costs(Engine(skipper, tokenizer, "threshold:0.9"))
    running = audit(engine, rate=1.0)
    result = engine.predict(many)
    record = engine.every_exit(many)
    agreement = float((result.logits.argmax(1) == record.logits[:, -1].argmax(1)).double().mean())
    assert running.report().agreement == pytest.approx(agreement)
    calibration = calibrate(engine, many, mean_depth=2.5, rounds=1, speed_samples=8)
    assert calibration.chosen.mean_layers <= 2.5
    fitted = {family.name for family in families_of(skipper) if family.fitted}  # judged by half of the texts
    unfitted = [candidate for candidate in calibration.candidates if candidate.family not in fitted]
    assert len({candidate.family for candidate in unfitted}) > 2
    for candidate in unfitted:
        measured = engine.with_policy(candidate.policy).predict(many).mean_layers
        assert measured == pytest.approx(candidate.mean_layers)


def test_what_was_calibrated_is_forgotten_whole(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    calibrate(Engine(skipper, tokenizer, "full+skip:never"), many, mean_depth=2.5, rounds=1, speed_samples=8)
    assert skipper.exit_config.policy.endswith("+skip:never")
    assert Engine(skipper, tokenizer).policy.skip == Skip("never")
    assert Engine(skipper, tokenizer).predict(texts).skipped is None
    skipper.forget_calibration()
    assert Engine(skipper, tokenizer).policy == Policy(LastLayer())
    assert Engine(skipper, tokenizer).predict(texts).skipped is not None


def test_a_promise_is_of_the_way_of_skipping_that_it_was_made_with(skipper, tokenizer, texts):
    many = [" ".join([*text.split(), word]) for text in texts for word in WORDS[5:25]]
    calibrate(Engine(skipper, tokenizer), many, agreement=0.6, rounds=1, speed_samples=8)
    assert audit(Engine(skipper, tokenizer)).promised == 0.6
    named = f"{skipper.exit_config.policy}+skip:never"
    assert audit(Engine(skipper, tokenizer, named)).promised is None
    skipper.exit_config.policy = named
    with pytest.warns(
        UserWarning, match=r"calibrated with exit_policy .*, now .*\+skip:never: its policy is used, but its promise"
    ):
        assert audit(Engine(skipper, tokenizer)).promised is None


def test_planned_paths_promise_nothing(skipper, tokenizer, texts):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    engine = Engine(skipper, tokenizer, "full+skip:planned")
    with pytest.raises(ValueError, match="agreement is promised against the model at full depth"):
        calibrate(engine, [f"{text} again" for text in texts * 5], agreement=0.6)


def test_planned_paths_are_saved_and_loaded(skipper, tokenizer, texts, tmp_path):
    skipper.exit_table = build_exit_table(
        skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",), save_records=True
    )
    skipper.exit_config.policy = "threshold:0.8+skip:planned:0.1"
    skipper.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu")
    assert engine.policy.skip == Skip("planned", 0.1)
    expected = Engine(skipper, tokenizer, "threshold:0.8+skip:planned:0.1").predict(texts)
    result = engine.predict(texts)
    assert torch.equal(result.skipped, expected.skipped)
    torch.testing.assert_close(result.logits, expected.logits)
    table = ExitTable.load(tmp_path)
    assert torch.equal(table.records.skipped, skipper.exit_table.records.skipped)
    assert set(table.rebuild(threshold=0.5).learned) == {"skips"}
    assert table.merge(table).records.skipped.shape[0] == 2 * len(texts) * 3
    assert table.merge(table).learned == {}
    assert table.without_records().learned["skips"].paths is table.learned["skips"].paths


def test_a_way_of_skipping_that_version_0_1_saved_is_kept(skipper, tokenizer, texts, tmp_path):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 3, 0.8, progress=False, learn=("skips",))
    skipper.exit_config.policy, skipper.exit_config.skipping = "verified:0.8", "planned:0.1"
    skipper.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine.from_pretrained(tmp_path, device="cpu")
    assert format_policy(engine.policy) == "predicted:0.05+threshold:0.8+skip:planned:0.1"
    assert saved_policy("verified:0.8", "planned:0.1") == engine.policy


def test_paths_by_hand():
    skipped = torch.tensor([[0, 1], [1, 1], [0, 1], [0, 0], [1, 1], [0, 1]], dtype=torch.bool)
    paths = common_paths(skipped, 2)
    assert paths.tolist() == [[False, True], [True, True]]
    assert common_paths(skipped, 9).shape == (3, 2)
    # P(path) for p = (.9, .6): (0, 1) .1 * .6, (1, 1) .9 * .6; a layer's price of 5 nats makes skipping both worth while.
    probabilities = torch.tensor([[0.9, 0.6], [0.1, 0.6], [0.0, 0.0]])
    assert choose_paths(probabilities, paths).tolist() == [1, 0, 0]
    assert choose_paths(probabilities, paths, price=5.0).tolist() == [1, 1, 0]
    assert choose_paths(probabilities, paths, price=-50.0).tolist() == [0, 0, 0]


def test_planned_learns_what_tokens_tell(skipper, tokenizer):
    """Where one word decides what is skipped, the table finds it."""
    words = {"good": [True, False, True, False], "bad": [False, True, False, False]}
    texts = [f"{word} {' '.join(WORDS[8 + i : 10 + i])}" for i in range(20) for word in words]
    table = build_exit_table(skipper, tokenizer, texts, 0.8, progress=False, learn=("skips",))
    records = table.records
    told = torch.tensor([words[text.split()[0]] for text in texts])
    table = ExitTable.from_records(
        type(records)(records.tokens, records.uncertainty, records.agrees, told),
        table.exit_layers, table.settings, table.vocab_size, table.fingerprint, table.special_ids,
    ).learn("skips", epochs=200)  # fmt: skip
    paths = table.learned["skips"].paths
    chosen = paths[choose_paths(table.predict_skips(records.tokens), paths)]
    assert torch.equal(chosen, told)


def test_schedule_by_groups():
    """Batches hold one exit and one group; every sample once; with one group as without."""
    generator = torch.Generator().manual_seed(0)
    exits, lengths = (torch.randint(1, high, (300,), generator=generator) for high in (13, 40))
    groups = torch.randint(0, 30, (300,), generator=generator)
    plan = schedule(exits, lengths, 128, groups)
    assert sorted(plan.order.tolist()) == list(range(300))
    for rows, layer in plan.batches():
        assert set(exits[rows].tolist()) == {layer}
        assert torch.unique(groups[rows]).numel() == 1
        assert lengths[rows].tolist() == sorted(lengths[rows].tolist(), reverse=True)
    assert list(plan.exits) == sorted(plan.exits, reverse=True)
    same, plain = schedule(exits, lengths, 128, torch.zeros_like(groups)), schedule(exits, lengths, 128)
    assert torch.equal(same.order, plain.order)
    assert same.bounds == plain.bounds
    with pytest.raises(ValueError, match="exits and groups must be of one length"):
        schedule(exits, lengths, 128, groups[:3])


def test_when_skipping_pays():
    costs = LayerCosts(((100, 1.0), (200, 1.1), (1000, 5.0)), move=0.0001)
    assert costs.skipping_pays(1000, 500)
    assert not costs.skipping_pays(100, 50)  # a small batch takes what it takes
    assert not LayerCosts(costs.points, move=1.0).skipping_pays(1000, 500)


def test_skipping_asked_of_a_model_without(model, skipper, tokenizer, texts):
    for mode in ("gates", "planned"):
        with pytest.raises(ValueError, match=f"skip='{mode}': this model has no skip gates"):
            Engine(model, tokenizer, f"full+skip:{mode}")
    with pytest.raises(ValueError, match=r"learn=\['skips'\]: this model has no skip gates"):
        build_exit_table(model, tokenizer, texts, 0.8, progress=False, learn=("skips",))
    with pytest.raises(ValueError, match="needs an exit table that learned them"):
        Engine(skipper, tokenizer, "full+skip:planned")
    table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False)
    with pytest.raises(ValueError, match="records are of a model without skip gates"):
        table.learn("skips")
    skipper.exit_table = table
    with pytest.raises(ValueError, match="needs an exit table that learned them"):
        Engine(skipper, tokenizer, "full+skip:planned")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (("sometimes",), ValueError, "unknown skip 'sometimes'; known: gates, never, planned"),
        (("gates", 0.5), ValueError, "takes no price"),
        (("planned", "cheap"), TypeError, "price must be a number, got 'cheap'"),
        (("planned", math.inf), ValueError, "price must be finite, got inf"),
        (("",), ValueError, "unknown skip ''"),
        ((0.5,), ValueError, "unknown skip 0.5"),
        ((False,), ValueError, "unknown skip False"),
    ],
)
def test_bad_ways_of_skipping(skipper, tokenizer, settings, error, message):
    with pytest.raises(error, match=message):
        Skip(*settings)
    form = ":".join(map(str, settings))
    with pytest.raises(ValueError, match="policy 'full"):
        Engine(skipper, tokenizer, f"full+skip:{form}")
    engine = Engine(skipper, tokenizer, "full+skip:never")
    with pytest.raises(ValueError, match="policy 'full"):
        engine.policy = f"full+skip:{form}"
    assert engine.predict(["good"]).skipped is None


def test_another_way_of_skipping_ends_an_audit(skipper, tokenizer, texts):
    engine = Engine(skipper, tokenizer)
    audit(engine, rate=1.0)
    with pytest.warns(UserWarning, match="the audit that was running ends here"):
        engine.policy = "full+skip:never"
    expected = Engine(skipper, tokenizer, "full+skip:never").predict(texts)
    torch.testing.assert_close(engine.predict(texts).logits, expected.logits)


def test_a_plan_is_not_audited_against_itself(skipper, tokenizer, texts):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    engine = Engine(skipper, tokenizer, "full+skip:planned:1000")  # the shortest path for all
    running = audit(engine, rate=1.0)
    planned, gated = engine.predict(texts), Engine(skipper, tokenizer).predict(texts)
    assert not torch.equal(planned.skipped, gated.skipped)
    agreement = float((planned.label_ids == gated.label_ids).double().mean())
    assert running.report().agreement == pytest.approx(agreement)
    assert agreement < 1


def test_a_table_of_other_gates_is_left_out(skipper, tokenizer, texts, tmp_path, caplog):
    skipper.exit_table = build_exit_table(skipper, tokenizer, texts * 4, 0.8, learn=("skips",), progress=False)
    skipper.save_pretrained(tmp_path)
    for changes in ({"skip_threshold": 1.0}, {"skip_layers": [4]}):
        caplog.clear()
        assert MultiExitBert.from_pretrained(tmp_path, **changes).exit_table is None
        assert f"The exit table is left out: it was built with {next(iter(changes))}=" in caplog.text
    assert MultiExitBert.from_pretrained(tmp_path).exit_table is not None
    skipper.config.skip_layers = [4]
    with pytest.raises(ValueError, match=r"paths that skip layers beside skip_layers=\[4\]: build it again"):
        Engine(skipper, tokenizer, "full+skip:planned")
