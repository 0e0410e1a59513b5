"""Every policy equals answering one sample at a time."""

from __future__ import annotations

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.ops.backend import VARIABLE, has_triton
from geep_triton.ops.exit_scores import score_exits
from geep_triton.policies.leave import Patient, Sure
from geep_triton.policies.plan import PlannedAfter
from geep_triton.policies.risk import LowRisk
from geep_triton.policies.start import FirstExit, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.tokens.ragged import Tokens

TOLERANCE = 1e-5
PAIRS = ["very", "we liked it again and again", "no", "bad film", "the hotel was cold", "good", "but", "never"]


def one_at_a_time(model, tokenizer, text, pair, policy):
    """(logits, exit layer) of one sample, by the policy's definition."""
    inputs = tokenizer(text, pair, return_tensors="pt")
    tokens = Tokens.from_lists([inputs["input_ids"][0].tolist()])
    with torch.no_grad():
        exits = dict(zip(model.config.exit_layers, model(**inputs, output_exit_logits=True).exit_logits, strict=True))
        first = first_layer(model, tokens, policy.start)
        if isinstance(policy.start, PlannedAfter):
            first = planned_exit(model, exits[policy.start.layer], policy.start)
        layer = first
        if policy.leave is not None and not (isinstance(policy.start, PlannedAfter) and first == policy.start.layer):
            layer = LEAVES[type(policy.leave)](exits, policy.leave, first, model)
        return model(**inputs, exit_layer=layer, answer_head=policy.answer_head).logits[0], layer


def first_layer(model, tokens, start):
    """The layer before which a sample is not looked at."""
    if isinstance(start, TableExit):
        if start.statistic is None and start.values == "counts" and model.exit_table.decides_by == "agreement":
            return first_layer(model, tokens, TableAgreement(agreement=0.98))
        return int(model.exit_table.predict(tokens, start.statistic or "argmax", values=start.values).exits)
    if isinstance(start, TableAgreement):
        table, price = model.exit_table, start.price
        price = table.price_for(start.mean_depth, start.agreement) if price is None else price
        worth = table.predict_agreement(tokens)[0] - price * torch.tensor(table.exit_layers)
        return table.exit_layers[int(worth.argmax())]
    return {LastLayer: model.config.num_hidden_layers, FirstExit: 1}.get(type(start)) or start.layer


def agreement_by_hand(model, layer, logits):
    """What the net of the exit after `layer` says of this exit and the deeper ones, by its own arithmetic in float64."""
    index, forecasts = model.exit_table.exit_layers.index(layer), model.exit_table.forecasts
    z = logits[0].double()
    hidden = (torch.cat([z, z.softmax(0)]) @ forecasts.hidden_weight[index].double() + forecasts.hidden_bias[index]).relu()
    return (hidden @ forecasts.weight[index].double() + forecasts.bias[index]).sigmoid()[index:]


def planned_exit(model, logits, start):
    """The exit that is worth most by the forecast after the layer of the plan."""
    layers = [layer for layer in model.config.exit_layers if layer >= start.layer]
    worth = agreement_by_hand(model, start.layer, logits) - start.plan(model).price * torch.tensor(layers)
    return layers[int(worth.argmax())]


def safe_exit(exits, leave, first, model):
    for layer, risk in scored(exits, leave, first, leave.risk):
        if 1 - float(agreement_by_hand(model, layer, exits[layer])[0]) <= risk:
            return layer
    return max(exits)


def scored(exits, leave, first, threshold=None):
    """(layer, threshold) of the exits at which a sample is scored."""
    layers, threshold = leave.layers or list(exits)[:-1], threshold if threshold is not None else leave.threshold
    thresholds = threshold if isinstance(threshold, tuple) else [threshold] * len(layers)
    return [(layer, threshold) for layer, threshold in zip(layers, thresholds, strict=True) if layer >= first]


def sure_exit(exits, leave, first, model):
    for layer, threshold in scored(exits, leave, first):
        uncertainty = float(score_exits(exits[layer], 1.0, leave.criterion, top_k=leave.top_k).uncertainty)
        if uncertainty <= threshold:
            return layer
    return max(exits)


def patient_exit(exits, leave, first, model):
    streak, previous = 0, None
    for layer, threshold in scored(exits, leave, first):
        answer = int(exits[layer].argmax())
        if threshold is None:
            streak = streak + 1 if answer == previous else 0
        else:
            sure = float(score_exits(exits[layer], 1.0, leave.criterion).uncertainty) <= threshold
            streak = streak + 1 if sure else 0
        previous = answer
        if streak >= leave.patience:
            return layer
    return max(exits)


LEAVES = {Sure: sure_exit, Patient: patient_exit, LowRisk: safe_exit}
ALONE = [
    *("full", "constant:1", "constant:3,answer_head=shared"),
    *("threshold:0.0", "threshold:0.8", "threshold:0.8,regroup=always", "threshold:0.9/0.7/0.8,regroup=never", "threshold:1.0"),
    *("threshold:0.6/0.9,criterion=margin,layers=1/3,regroup=always", "threshold:-2.5,criterion=energy"),
    "threshold:0.9,criterion=top_k_entropy,top_k=2,regroup=always",
    *("patience:1,regroup=always", "patience:2,regroup=never", "patience:2,threshold=0.9,regroup=always"),
    *("predicted", "predicted:mean", "predicted:0.8,answer_head=shared"),
]
# Every start beside every way to leave, with every way to go on among them.
STARTS = ["constant:2", "predicted", "predicted:0.05", "predicted:mean"]
FURTHER_LEAVES = [
    *("threshold:0.8,regroup=always", "threshold:0.75/0.65,layers=2/3,regroup=never", "patience:1"),
    "patience:2,threshold=0.8,regroup=always",
]
PRODUCT = [f"{start}+{leave}" for start in STARTS for leave in FURTHER_LEAVES]
POLICIES = [parse_policy(text) for text in (*ALONE, *PRODUCT)]


@pytest.mark.parametrize("policy", POLICIES, ids=format_policy)
@pytest.mark.parametrize("pairs", [False, True], ids=["single", "pairs"])
@pytest.mark.parametrize(("window", "token_budget", "in_flight"), [(100, 10_000, 1), (100, 40, 1), (100, 40, 3), (3, 24, 2)])
def test_policy_equals_one_sample_at_a_time(model, tokenizer, texts, policy, pairs, window, token_budget, in_flight):
    inputs = list(zip(texts, PAIRS, strict=True)) if pairs else texts
    model.exit_table = build_exit_table(model, tokenizer, inputs, 0.8, ngram=2, progress=False)
    engine = Engine(model, tokenizer, policy, window=window, token_budget=token_budget, in_flight=in_flight)
    result = engine.predict(inputs)
    for index, item in enumerate(inputs):
        text, pair = item if pairs else (item, None)
        logits, layer = one_at_a_time(model, tokenizer, text, pair, policy)
        assert int(result.exit_layers[index]) == layer
        assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


LEARN = ("agreement", "exits", "forecasts")
LEARNED_STARTS = [
    *("predicted", "predicted:mean,values=learned", "allocated:0.05", "allocated:0.01"),
    *("allocated,mean_depth=2.5", "allocated,agreement=0.8"),
]
FORECAST = [
    *(
        "risk:0.38",
        "risk:0.38,regroup=always",
        "risk:0.4/0.5/0.8,regroup=never",
        "risk:0.42/0.77,layers=1/3",
        "constant:2+risk:0.5",
    ),
    *("planned:1,price=0.13", "planned:1,price=0.13,regroup=always", "planned:2,price=0.2,regroup=never"),
    *("planned:1,mean_depth=2.5", "planned:1,agreement=0.8", "planned:3,price=0.79", "allocated:0.2+risk:0.4"),
    *("planned:1,price=0.15+risk:0.25,regroup=always", "planned:1,price=0.15+threshold:0.7", "planned:1,price=0.15+patience:1"),
]
LEARNED = [*LEARNED_STARTS, *(f"{start}+{leave}" for start in LEARNED_STARTS[:4] for leave in FURTHER_LEAVES), *FORECAST]
LEARNED_POLICIES = [parse_policy(text) for text in (*LEARNED, "allocated:0.05,answer_head=shared")]


@pytest.mark.parametrize("policy", LEARNED_POLICIES, ids=format_policy)
def test_a_policy_by_learned_values_equals_one_sample_at_a_time(model, tokenizer, texts, policy):
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, progress=False, learn=LEARN)
    result = Engine(model, tokenizer, policy, window=5, token_budget=40, in_flight=2).predict(texts)
    for index, text in enumerate(texts):
        logits, layer = one_at_a_time(model, tokenizer, text, None, policy)
        assert int(result.exit_layers[index]) == layer
        assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("policy", [*POLICIES, *LEARNED_POLICIES], ids=format_policy)
def test_simulation_and_single_samples_give_what_batches_do(model, tokenizer, texts, policy):
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, progress=False, learn=LEARN)
    engine = Engine(model, tokenizer, policy, window=5, token_budget=40)
    result, record = engine.predict(texts), engine.every_exit(texts)
    logits = record.logits
    exits = simulate(model, engine.policy, record.tokens, logits)
    assert (exits + 1).tolist() == result.exit_layers.tolist()
    if policy.answer_head == "student":
        torch.testing.assert_close(result.logits, logits[torch.arange(len(texts)), exits], atol=TOLERANCE, rtol=0)
    alone = [engine.predict(text) for text in texts]
    assert [int(answer.exit_layers) for answer in alone] == result.exit_layers.tolist()
    torch.testing.assert_close(torch.cat([answer.logits for answer in alone]), result.logits, atol=TOLERANCE, rtol=0)


def test_the_comparison_above_sees_many_exits(model, tokenizer, texts):
    """Guards the test above: on this model thresholds and tables really split the samples."""
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    same_for_all = {"full", "constant:1", "constant:3,answer_head=shared", "threshold:0.0", "threshold:1.0"}
    same_for_all.add("predicted:mean+patience:1")  # no exit from there on agrees with the one before
    for policy in [policy for policy in POLICIES if format_policy(policy) not in same_for_all]:
        assert torch.unique(Engine(model, tokenizer, policy).predict(texts).exit_layers).numel() >= 2
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, progress=False, learn=LEARN)
    for policy in FORECAST:
        assert torch.unique(Engine(model, tokenizer, policy).predict(texts).exit_layers).numel() >= 2, policy


@pytest.mark.skipif(not has_triton() or torch.cuda.is_available(), reason="needs Triton's interpreter: Triton, and no GPU")
@pytest.mark.parametrize("policy", [*POLICIES, *map(parse_policy, FORECAST)], ids=format_policy)
def test_engine_on_triton_ops_gives_the_same(model, tokenizer, texts, policy, monkeypatch):
    """Building the table, planning, scoring and moving rows all in Triton."""
    known = [f"{text} {word}" for text in texts for word in ("again", "soup", "bad")]
    learn = LEARN if format_policy(policy) in FORECAST else ()
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, ngram=2, progress=False, learn=learn)
    expected = Engine(model, tokenizer, policy, token_budget=40).predict(texts)
    monkeypatch.setenv(VARIABLE, "triton")
    model.exit_table = build_exit_table(model, tokenizer, known, 0.8, ngram=2, progress=False, learn=learn)
    result = Engine(model, tokenizer, policy, token_budget=40).predict(texts)
    assert result.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(result.logits, expected.logits, atol=TOLERANCE, rtol=0)


def test_policies_on_real_weights(minilm, minilm_path):
    from geep_triton import MultiExitBert

    _, tokenizer = minilm
    torch.manual_seed(3)
    model = MultiExitBert.from_pretrained(minilm_path, num_labels=3, pooling="mean")
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(5)
    texts = [
        "A film about rain.",
        "no",
        "What a long, long evening that was, and how little we had to show for it!",
    ] * 3
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.9, progress=False)
    for policy in map(parse_policy, ("full", "constant:2", "threshold:0.9", "predicted", "predicted:0.05+threshold:0.9")):
        result = Engine(model, tokenizer, policy, token_budget=64).predict(texts)
        for index, text in enumerate(texts):
            logits, layer = one_at_a_time(model, tokenizer, text, None, policy)
            assert int(result.exit_layers[index]) == layer
            assert float((result.logits[index] - logits).abs().max()) <= TOLERANCE


def test_texts_and_pairs_mixed(model, tokenizer, texts):
    mixed = [(text, pair) if index % 2 else text for index, (text, pair) in enumerate(zip(texts, PAIRS, strict=True))]
    engine = Engine(model, tokenizer)
    logits = engine.predict(mixed).logits
    for index, item in enumerate(mixed):
        torch.testing.assert_close(logits[index], engine.predict([item]).logits[0])
