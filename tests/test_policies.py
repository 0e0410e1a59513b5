"""Policies: short forms, settings that do not fit, plans."""

from __future__ import annotations

import warnings

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.engine.policies import (
    Allocated,
    ConstantDepth,
    FullDepth,
    Patience,
    Predicted,
    Threshold,
    Verified,
    format_policy,
    parse_policy,
)

FORMS = {
    "full": FullDepth(),
    "constant:3": ConstantDepth(3),
    "constant:2,answer_head=teacher": ConstantDepth(2, "teacher"),
    "threshold": Threshold(),
    "threshold:0.3": Threshold(0.3),
    "threshold:0.1/0.2/0.30000000000000004": Threshold((0.1, 0.2, 0.1 + 0.2)),
    "threshold:-4.0,criterion=energy,layers=1/3,pooling=never": Threshold(-4.0, "energy", layers=(1, 3), pooling="never"),
    "threshold:0.5,criterion=top_k_entropy,top_k=7": Threshold(0.5, "top_k_entropy", 7),
    "patience:2": Patience(2),
    "patience:2,threshold=0.1": Patience(2, 0.1),
    "predicted": Predicted(),
    "predicted:mean": Predicted("mean"),
    "predicted:0.9,answer_head=teacher": Predicted(0.9, answer_head="teacher"),
    "predicted:mean,values=learned": Predicted("mean", "learned"),
    "allocated:0.01": Allocated(0.01),
    "allocated,mean_depth=2.5": Allocated(mean_depth=2.5),
    "allocated,agreement=0.98,answer_head=teacher": Allocated(agreement=0.98, answer_head="teacher"),
    "verified:0.2,decision=mean,earlier=0.5,certain=0.99": Verified(0.2, "mean", earlier=0.5, certain=0.99),
    "verified,layers=2/3": Verified(layers=(2, 3)),
}


@pytest.mark.parametrize(("text", "policy"), FORMS.items(), ids=list(FORMS))
def test_short_forms_both_ways(text, policy):
    assert parse_policy(text) == policy
    assert format_policy(policy) == text
    assert parse_policy(policy) is policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "unknown policy 'fast'; known: full, constant:LAYER"),
        ("full:3", "it takes no value"),
        ("constant:x", "policy 'constant:x'"),
        ("constant", "missing"),
        ("threshold:warm", "'warm' is no number"),
        ("threshold:0.2,mood=good", "it has no setting 'mood'"),
        ("threshold:0.2,criterion=vibes", "unknown criterion 'vibes'"),
        ("threshold:0.2,pooling=often", "unknown pooling 'often'; known: always, auto, never"),
        ("threshold:0.2,layers=a", "invalid literal"),
        ("patience:0", "patience must be at least 1"),
        ("predicted:2", "decision"),
        ("predicted,values=guessed", "unknown values 'guessed'; known: counts, learned"),
        ("allocated:7", "price must be between 0.0 and 1.0, got 7.0"),
        ("allocated", "exactly one of price, mean_depth and agreement, got none"),
        ("allocated:0.1,mean_depth=3", "exactly one of price, mean_depth and agreement, got .'price', 'mean_depth'."),
        ("verified:0.2,earlier=3", "earlier must be between"),
        ("verified:0.2,price=0.1,earlier=0.3", "earlier=0.3 is of predicted exits, but a price plans by agreement"),
    ],
)
def test_bad_short_forms(text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("threshold", "needs a threshold: pass one"),
        ("threshold:0.2/0.3", r"one per scored exit \[1, 2, 3\], got 2"),
        ("threshold:1.5", "threshold must be between 0.0 and 1.0, got 1.5"),
        ("threshold,criterion=margin", "criterion 'margin' needs a threshold"),
        ("threshold:0.3,layers=1/4", r"layers must be some of this model's early exits \[1, 2, 3\], ascending, got \[1, 4\]"),
        ("threshold:0.3/0.2,layers=3/1", r"ascending, got \[3, 1\]"),
        ("constant:7", "layer 7 is not an exit"),
        ("predicted", "policy 'predicted' needs an exit table"),
        ("verified:0.3", "policy 'verified' needs an exit table"),
    ],
)
def test_policies_that_do_not_fit_the_model(model, tokenizer, policy, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, policy)


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("allocated:0.1", "with_agreement"),
        ("verified:0.1,price=0.1", "with_agreement"),
        ("predicted,values=learned", "with_exit_values"),
        ("verified:0.1,values=learned", "with_exit_values"),
    ],
)
def test_learned_values_are_asked_for(model, tokenizer, texts, policy, method):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    with pytest.raises(ValueError, match=rf"needs learned values: .*{method}"):
        Engine(model, tokenizer, policy)


def test_verified_scores_from_where_the_first_are_expected_to_leave(model, tokenizer, texts):
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, smoothing=0.5, progress=False)
    tokens = model.exit_table.records.tokens
    gone = model.exit_table.predict(tokens).probabilities.cumsum(1)
    stops = Verified(0.8).plan(model, tokens).stops
    assert torch.equal(stops, (gone < 0.05).sum(1) + 1)
    assert (stops <= Verified(0.8, "argmax").plan(model, tokens).stops).all()


def test_the_models_own_thresholds(model, tokenizer, texts):
    model.config.exit_thresholds = [0.9, 0.7, 0.8]
    for policy, layers in (("threshold", [1, 2, 3]), ("threshold,layers=1/3", [1, 3])):
        rule = Engine(model, tokenizer, policy).policy.rule(model)
        assert rule.thresholds == {layer: [0.9, 0.7, 0.8][layer - 1] for layer in layers}


def test_the_calibrated_policy_is_the_default(model, tokenizer):
    assert Engine(model, tokenizer).policy == FullDepth()
    model.config.exit_policy = "threshold:0.4"
    assert Engine(model, tokenizer).policy == Threshold(0.4)
    assert Engine(model, tokenizer, "full").policy == FullDepth()


def test_single_calls_are_counted_together_and_warned_of_once(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "threshold:0.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(49):
            engine.predict(texts[index % len(texts)])
    with pytest.warns(UserWarning, match="of 50 samples none left before the last layer"):
        engine.predict(texts[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.predict(texts[0])


@pytest.mark.parametrize(("threshold", "message"), [("0.0", "none left before the last layer"), ("1.0", "all left at layer 1")])
def test_a_threshold_without_effect_is_said_aloud(model, tokenizer, texts, threshold, message):
    with pytest.warns(UserWarning, match=f"of 56 samples {message}"):
        Engine(model, tokenizer, f"threshold:{threshold}").predict(texts * 7)


def test_a_table_that_tells_nothing_apart_is_said_aloud(model, tokenizer, texts):
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 1.0, progress=False)
    with pytest.warns(UserWarning, match="of 56 samples all left at layer 1"):
        Engine(model, tokenizer, "predicted").predict(texts * 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, tokenizer, "constant:1").predict(texts * 7)


@pytest.mark.parametrize("policy", ["predicted", "verified:0.8", "verified:0.8,price=0.05", "allocated:0.05"])
def test_a_table_that_is_taken_away_is_missed(model, tokenizer, texts, policy):
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, learn_agreement=True)
    engine = Engine(model, tokenizer, policy)
    model.exit_table = None
    with pytest.raises(ValueError, match="needs an exit table"):
        engine.predict(texts)
