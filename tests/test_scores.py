"""Models of one score and of sets of labels under every policy: as one sample at a time, and as simulated."""

from __future__ import annotations

import math

import pytest
import torch

from geep_triton import Engine, MultiExitBert, build_exit_table
from geep_triton.policies.leave import Far, Steady
from geep_triton.policies.text import format_policy, parse_policy
from geep_triton.promises.simulate import simulate

MULTI = "multi_label_classification"
MODELS = {
    "score": ({"num_labels": 1, "problem_type": "regression"}, {"decision": 0.2, "tolerance": 0.5}),
    "probability": ({"num_labels": 1, "problem_type": MULTI}, {"decision": 0.6}),
    "label sets": ({"num_labels": 5, "problem_type": MULTI}, {"decision": (0.5, 0.4, 0.6, 0.5, 0.9)}),
}
POLICIES = {
    "score": (
        *("distance:0.3", "distance:0.5/0.2/0.1", "constant:2"),
        *("steady:0.3", "steady:0.4,patience=2", "steady:0.3/0.5/0.1"),
    ),
    "probability": ("distance:0.3", "steady:0.5"),
    "label sets": ("distance:0.1", "distance:0.2/0.1,layers=1/3", "distance:0.05,regroup=never", "full"),
}
CASES = [(kind, policy) for kind, policies in POLICIES.items() for policy in policies]


def model_of(kind, make_model, **changes):
    settings, served = MODELS[kind]
    model = make_model(pooling="mean", **settings, **changes)
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    return model


def exit_by_hand(policy, exits, cuts):
    """The layer at which one sample leaves, from the logits of every exit {layer: [C]}, by the leave's definition."""
    leave, last = policy.leave, max(exits)
    if leave is None:
        return getattr(policy.start, "layer", last)
    layers = leave.layers or [layer for layer in exits if layer != last]
    values = leave.distance if isinstance(leave, Far) else leave.change
    values = values if isinstance(values, tuple) else [values] * len(layers)
    before, streak = math.nan, 0
    for layer, value in zip(layers, values, strict=True):
        logits = exits[layer].tolist()
        if isinstance(leave, Far):
            if min(abs(logit - cut) for logit, cut in zip(logits, cuts, strict=True)) >= value:
                return layer
            continue
        streak = streak + 1 if abs(logits[0] - before) <= value else 0
        before = logits[0]
        if streak >= leave.patience:
            return layer
    return last


@pytest.mark.parametrize(("kind", "text"), CASES)
@pytest.mark.parametrize("settings", [{}, {"token_budget": 24, "in_flight": 3}], ids=["one batch", "small batches"])
def test_every_policy_is_as_one_sample_at_a_time(kind, text, settings, make_model, tokenizer, texts):
    model, policy = model_of(kind, make_model), parse_policy(text)
    assert parse_policy(format_policy(policy)) == policy
    result = Engine(model, tokenizer, policy, **settings).predict(texts)
    exits = set()
    for row, sample in enumerate(texts):
        with torch.no_grad():
            output = model(**tokenizer(sample, return_tensors="pt"), output_exit_logits=True)
        logits = {layer: of[0] for layer, of in zip(model.config.exit_layers, output.exit_logits, strict=True)}
        layer = exit_by_hand(policy, logits, model.answers.cuts)
        assert int(result.exit_layers[row]) == layer
        torch.testing.assert_close(result.logits[row], logits[layer], rtol=0, atol=1e-5)
        exits.add(layer)
    assert len(exits) > 1 or not policy.chooses


@pytest.mark.parametrize(("kind", "text"), CASES)
@pytest.mark.parametrize("gated", [False, True])
def test_the_simulation_is_what_runs(kind, text, gated, make_model, tokenizer, many):
    gates = {"skip_gate": "mean", "skip_gate_bias": 0.0} if gated else {}
    model = model_of(kind, make_model, **gates)
    engine = Engine(model, tokenizer, text)
    record = engine.every_exit(many[:100])
    exits = simulate(model, engine.policy, record.tokens, record.logits, record.skipped)
    ran = engine.predict(many[:100])
    assert ran.exit_layers.tolist() == torch.tensor(model.config.exit_layers)[exits].tolist()


@pytest.mark.parametrize("kind", MODELS)
def test_a_table_predicts_where_answers_are_final(kind, make_model, tokenizer, many):
    model = model_of(kind, make_model)
    model.exit_table = build_exit_table(model, tokenizer, many, learn=("agreement", "exits"), progress=False)
    record = Engine(model, tokenizer).every_exit(many)
    agrees = model.answers.agree(record.logits, record.logits[:, -1:]).tolist()
    final = [min(e for e in range(len(row)) if all(row[e:])) for row in agrees]
    assert model.exit_table.exit_counts.tolist() == [final.count(e) for e in range(4)]
    assert model.exit_table.criterion == "agreement"
    with pytest.raises(ValueError, match="criterion 'agreement' takes no threshold, got 0.3"):
        model.exit_table.rebuild(threshold=0.3)
    for policy in ("predicted:0.9", "allocated:0.02", "allocated:0.02+distance:0.1"):
        assert len(Engine(model, tokenizer, policy).predict(many[:20])) == 20


def test_a_leave_that_the_model_cannot_have(make_model, tokenizer):
    score, classes = model_of("score", make_model), make_model()
    sets = model_of("label sets", make_model)
    for model, policy, message in (
        (classes, "distance:0.5", "a distance needs a model of score or label sets, got one of classes"),
        (classes, "steady:0.5", "a steady score needs a model of score, got one of classes"),
        (sets, "steady:0.5", "a steady score needs a model of score, got one of label sets"),
        (sets, "patience:2", "patience needs a model of classes, got one of label sets"),
        (score, "threshold:0.5", "a threshold of uncertainty needs a model of classes, got one of score"),
        (score, "distance:0.5/0.4", "distance must be one number, or one per scored exit"),
        (score, "distance:0.5/0.4/0.3,layers=1/9", "layers must be some of this model's early exits"),
    ):
        with pytest.raises(ValueError, match=message):
            Engine(model, tokenizer, policy)
    score.exit_config.decision = None
    with pytest.raises(ValueError, match="a distance needs a decision"):
        Engine(score, tokenizer, "distance:0.5")


@pytest.mark.parametrize("wrong", ["distance:-1", "distance:nan", "steady:-0.1", "steady:0.1,patience=0", "distance"])
def test_a_wrong_leave_is_refused(wrong):
    with pytest.raises(ValueError, match=wrong.split(":")[0]):
        parse_policy(wrong)
    with pytest.raises(TypeError):
        Far("3")
    with pytest.raises(TypeError):
        Steady(0.1, patience=1.5)


def test_full_depth_keeps_a_decision_through_saving(make_model, tokenizer, texts, tmp_path):
    model = model_of("label sets", make_model)
    model.exit_config.policy = "distance:0.1"
    engine = Engine(model, tokenizer)
    engine.save_pretrained(tmp_path)
    again = Engine.from_pretrained(tmp_path)
    assert again.model.exit_config.decision == (0.5, 0.4, 0.6, 0.5, 0.9)
    assert again.predict(texts).label_sets == engine.predict(texts).label_sets


def test_a_calibration_is_of_one_kind_of_answers(make_model, tokenizer, tmp_path, caplog):
    """The same logit is a score, or the log-odds of one, so that a distance from the cut .5 means two things."""
    model = make_model(num_labels=1, pooling="mean")
    model.exit_config.decision, model.exit_config.policy = 0.5, "distance:0.1"
    model.exit_config.calibration = {"promise": ["agreement", 0.9], "chosen": {"policy": "distance:0.1"}}
    Engine(model, tokenizer).save_pretrained(tmp_path)
    same = MultiExitBert.from_pretrained(tmp_path, problem_type="regression")
    assert same.exit_config.policy == "distance:0.1"
    other = MultiExitBert.from_pretrained(tmp_path, problem_type=MULTI)
    assert (other.exit_config.policy, other.exit_config.calibration) == (None, None)
    assert "exits, gates or the kind of answers changed" in caplog.text
