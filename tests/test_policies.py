"""Policies: short forms, settings that do not fit, plans."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton import Engine, build_exit_table
from geep_triton.exit_config import ExitConfig
from geep_triton.ops.exit_scores import CLASS_CRITERIA, score_exits
from geep_triton.policies.leave import REGROUPS, ExitRule, Far, Patient, Steady, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, TableAgreement, TableExit
from geep_triton.policies.text import format_policy, parse_policy

FULL = Policy(LastLayer())


def scored(*settings, **further):
    return Policy(FirstExit(), Sure(*settings, **further))


FORMS = {
    "full": FULL,
    "constant:3": Policy(AtLayer(3)),
    "constant:2,answer_head=shared": Policy(AtLayer(2), answer_head="shared"),
    "constant:2+threshold:0.3": Policy(AtLayer(2), Sure(0.3)),
    "threshold": scored(),
    "threshold:0.3": scored(0.3),
    "threshold:0.1/0.2/0.30000000000000004": scored((0.1, 0.2, 0.1 + 0.2)),
    "threshold:0.3/,layers=2": scored((0.3,), layers=(2,)),
    "threshold:-4.0,criterion=energy,layers=1/3,regroup=never": scored(-4.0, "energy", layers=(1, 3), regroup="never"),
    "threshold:0.5,criterion=top_k_entropy,top_k=7": scored(0.5, "top_k_entropy", 7),
    "patience:2": Policy(FirstExit(), Patient(2)),
    "patience:2,threshold=0.1": Policy(FirstExit(), Patient(2, 0.1)),
    "predicted": Policy(TableExit()),
    "predicted:argmax": Policy(TableExit("argmax")),
    "predicted:mean": Policy(TableExit("mean")),
    "predicted:0.9,answer_head=shared": Policy(TableExit(0.9), answer_head="shared"),
    "predicted:mean,values=learned": Policy(TableExit("mean", "learned")),
    "predicted:0.05+threshold:0.3": Policy(TableExit(0.05), Sure(0.3)),
    "predicted+patience:2,threshold=0.1,layers=2/3": Policy(TableExit(), Patient(2, 0.1, layers=(2, 3))),
    "allocated:0.01": Policy(TableAgreement(0.01)),
    "allocated,mean_depth=2.5": Policy(TableAgreement(mean_depth=2.5)),
    "allocated,agreement=0.98,answer_head=shared": Policy(TableAgreement(agreement=0.98), answer_head="shared"),
    "allocated:0.02+patience:2": Policy(TableAgreement(0.02), Patient(2)),
    "full+skip:planned": Policy(LastLayer(), skip=Skip("planned")),
    "full+skip:planned:2.5": Policy(LastLayer(), skip=Skip("planned", 2.5)),
    "threshold:0.3,criterion=margin+skip:never": Policy(FirstExit(), Sure(0.3, "margin"), Skip("never")),
    "predicted:0.05+threshold:0.3+skip:gates": Policy(TableExit(0.05), Sure(0.3), Skip("gates")),
}


@pytest.mark.parametrize(("text", "policy"), FORMS.items(), ids=list(FORMS))
def test_short_forms_both_ways(text, policy):
    assert parse_policy(text) == policy
    assert format_policy(policy) == text
    assert parse_policy(policy) is policy


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SHARES = st.floats(0.0, 1.0)
LAYERS = st.none() | st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple)
STARTS = st.one_of(
    st.builds(AtLayer, st.integers(1, 99)),
    st.builds(
        TableExit, st.sampled_from([None, "argmax", "mean"]) | st.floats(0.001, 1.0), st.sampled_from(["counts", "learned"])
    ),
    st.builds(TableAgreement, SHARES),
    st.builds(TableAgreement, mean_depth=st.floats(1.0, 1e20)),
)
SCORED = {
    "threshold": st.none() | FLOATS | st.lists(FLOATS, min_size=1, max_size=4).map(tuple),
    "criterion": st.sampled_from(CLASS_CRITERIA),
    "top_k": st.integers(2, 9),
    "layers": LAYERS,
    "regroup": st.sampled_from(REGROUPS),
}
FROM_ZERO = st.floats(0.0, 1e9)
VALUES = FROM_ZERO | st.lists(FROM_ZERO, min_size=1, max_size=4).map(tuple)
PLACES = {"layers": LAYERS, "regroup": st.sampled_from(REGROUPS)}
LEAVES = st.one_of(
    st.builds(Sure, **SCORED),
    st.builds(Patient, st.integers(1, 9), **SCORED),
    st.builds(Far, VALUES, **PLACES),
    st.builds(Steady, VALUES, st.integers(1, 9), **PLACES),
)
SKIPS = st.none() | st.sampled_from([Skip("gates"), Skip("never")]) | st.builds(Skip, st.just("planned"), FLOATS)
ANY_POLICY = st.one_of(
    st.builds(Policy, STARTS | st.just(LastLayer()), skip=SKIPS),
    st.builds(Policy, STARTS, skip=SKIPS, answer_head=st.sampled_from(["student", "shared"])),
    st.builds(Policy, STARTS | st.just(FirstExit()), LEAVES, SKIPS),
)


@given(ANY_POLICY)
def test_any_policy_is_what_its_short_form_says(policy):
    assert parse_policy(format_policy(policy)) == policy


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("verified:0.2", "predicted:0.05+threshold:0.2"),
        ("verified", "predicted:0.05+threshold"),
        ("verified:0.1/0.2,layers=1/3", "predicted:0.05+threshold:0.1/0.2,layers=1/3"),
        ("verified:0.2,decision=mean,values=learned", "predicted:mean,values=learned+threshold:0.2"),
        ("verified:0.2,values=learned,pooling=never", "predicted:0.05,values=learned+threshold:0.2,regroup=never"),
        ("verified:0.2,price=0.05,criterion=margin", "allocated:0.05+threshold:0.2,criterion=margin"),
        ("verified:0.2,price=0.1,decision=mean,values=learned", "allocated:0.1+threshold:0.2"),
        ("threshold:0.3,pooling=always", "threshold:0.3,regroup=always"),
        ("patience:2,pooling=always", "patience:2,regroup=always"),
        ("constant:2,answer_head=teacher", "constant:2,answer_head=shared"),
        ("predicted:0.9,answer_head=teacher", "predicted:0.9,answer_head=shared"),
    ],
)
def test_short_forms_of_version_0_1(old, new):
    assert format_policy(parse_policy(old)) == new


def test_what_version_0_1_saved_of_skipping():
    folded = ExitConfig.from_old_config({"exit_policy": "verified:0.2", "skipping": "planned:0.5"})
    assert parse_policy(folded.policy) == Policy(TableExit(0.05), Sure(0.2), Skip("planned", 0.5))
    assert parse_policy(ExitConfig.from_old_config({"skipping": "never"}).policy) == Policy(LastLayer(), skip=Skip("never"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "unknown policy 'fast'; known: full, constant:LAYER"),
        ("full:3", "full takes no value"),
        ("constant:x", "policy 'constant:x'"),
        ("constant", "missing its layer"),
        ("threshold:warm", "'warm' is no number"),
        ("threshold:0.2,mood=good", "threshold has no setting 'mood'"),
        ("threshold:0.2,criterion=vibes", "unknown criterion 'vibes'"),
        ("threshold:0.2,regroup=often", "unknown regroup 'often'; known: always, auto, never"),
        ("threshold:0.2,pooling=often", "unknown regroup 'often'; known: always, auto, never"),
        ("threshold:0.2,layers=a", "invalid literal"),
        ("threshold:0.2,answer_head=shared", "threshold has no setting 'answer_head'"),
        ("patience:0", "patience must be at least 1"),
        ("predicted:2", "statistic"),
        ("predicted,values=guessed", "unknown values 'guessed'; known: counts, learned"),
        ("allocated:7", "price must be between 0.0 and 1.0, got 7.0"),
        ("allocated", "exactly one of price, mean_depth and agreement, got none"),
        ("allocated:0.1,mean_depth=3", "exactly one of price, mean_depth and agreement, got .'price', 'mean_depth'."),
        ("verified:0.2,earlier=0.5", "has no setting 'earlier'"),
        ("verified:0.2,certain=0.9", "has no setting 'certain'"),
        ("verified:0.2+threshold:0.1", "'threshold:0.1' has no place there"),
        ("threshold:0.2+predicted", "'predicted' has no place there"),
        ("threshold:0.2+patience:2", "'patience:2' has no place there"),
        ("predicted+skip:gates+threshold:0.2", "'threshold:0.2' has no place there"),
        ("full+skip:gates+skip:never", "'skip:never' has no place there"),
        ("predicted+slowly", "'slowly' has no place there"),
        ("skip:planned", "unknown policy 'skip:planned'"),
        ("full+skip:sometimes", "unknown skip 'sometimes'; known: gates, never, planned"),
        ("full+skip", "unknown skip ''; known: gates, never, planned"),
        ("full+skip:gates:0.5", "skip 'gates' takes no price, got 0.5"),
        ("full+skip:planned:cheap", "'cheap' is no number"),
        ("full+skip:planned:inf", "price must be finite, got inf"),
        ("full+threshold:0.2", "leave must be None with start LastLayer"),
        ("full,answer_head=shared", "answer early and score nobody"),
        ("constant:2,answer_head=shared+threshold:0.2", "answer early and score nobody"),
        ("constant:2,answer_head=tutor", "unknown answer_head 'tutor'; known: shared, student"),
    ],
)
def test_bad_short_forms(text, message):
    with pytest.raises(ValueError, match=message):
        parse_policy(text)


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"start": "full"}, TypeError, "start must be a start, with the methods check and stops, got 'full'"),
        ({"start": LastLayer}, TypeError, "start must be a start, with the methods check and stops, got <class"),
        ({"start": FirstExit()}, ValueError, "needs a leave"),
        ({"start": AtLayer(1), "leave": Sure}, TypeError, "leave must be a leave"),
        ({"start": AtLayer(1), "leave": 0.3}, TypeError, "leave must be a leave, with the method rule, or None, got 0.3"),
        (
            {"start": AtLayer(1), "leave": SimpleNamespace(rule=len, regroup="often")},
            ValueError,
            "unknown regroup 'often'; known: always, auto, never",
        ),
        ({"start": AtLayer(1), "skip": "never"}, TypeError, "skip must be a Skip or None, got 'never'"),
        ({"start": AtLayer(1), "answer_head": 3}, ValueError, "unknown answer_head 3"),
    ],
)
def test_parts_that_make_no_policy(parts, error, message):
    with pytest.raises(error, match=message):
        Policy(**parts)


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
        ("predicted+threshold:0.3", "policy 'predicted' needs an exit table"),
        ("allocated:0.3", "policy 'allocated' needs an exit table"),
        ("full+skip:gates", "skip='gates': this model has no skip gates"),
    ],
)
def test_policies_that_do_not_fit_the_model(model, tokenizer, policy, message):
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer, policy)


@pytest.mark.parametrize(
    ("policy", "method"),
    [
        ("allocated:0.1", r"learn\('agreement'\)"),
        ("allocated:0.1+threshold:0.1", r"learn\('agreement'\)"),
        ("predicted,values=learned", r"learn\('exits'\)"),
        ("predicted,values=learned+threshold:0.1", r"learn\('exits'\)"),
    ],
)
def test_learned_values_are_asked_for(model, tokenizer, texts, policy, method):
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    with pytest.raises(ValueError, match=rf"needs learned values: .*{method}"):
        Engine(model, tokenizer, policy)


def test_a_table_start_scores_from_where_the_first_are_expected_to_leave(model, tokenizer, texts):
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, smoothing=0.5, progress=False)
    tokens = model.exit_table.records.tokens
    gone = model.exit_table.predict(tokens).probabilities.cumsum(1)
    stops = parse_policy("predicted:0.05+threshold:0.8").stops(model, tokens)
    assert torch.equal(stops, (gone < 0.05).sum(1) + 1)
    assert (stops <= parse_policy("predicted:argmax+threshold:0.8").stops(model, tokens)).all()


def test_a_start_is_moved_on_to_where_samples_are_scored(model, tokenizer, texts):
    tokens = Engine(model, tokenizer).every_exit(texts).tokens
    for layer, layers, expected in ((1, None, 1), (1, (2, 3), 2), (2, (1, 3), 3), (4, (1, 3), 4)):
        stops = Policy(AtLayer(layer), Sure(0.8, layers=layers)).stops(model, tokens)
        assert stops.tolist() == [expected] * len(texts)


def test_predicted_is_as_the_table_decides(model, tokenizer, texts):
    """By learned agreement where the table has it, else by its counts."""
    for learn, other in (("agreement",), "allocated,agreement=0.98"), ((), "predicted:argmax"):
        model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, learn=learn)
        tokens = model.exit_table.records.tokens
        stops = parse_policy("predicted").stops(model, tokens)
        assert torch.equal(stops, model.exit_table.decide(tokens))
        assert torch.equal(stops, parse_policy(other).stops(model, tokens))


def test_a_start_of_ones_own(model, tokenizer, texts):
    class ByLength:
        """Long texts are answered later."""

        def check(self, model, tokenizer):
            if model.config.exit_layers[0] != 1:
                raise ValueError("needs an exit at layer 1")

        def stops(self, model, tokens):
            return (tokens.lengths // 6 + 1).clamp(max=4)

    lengths = torch.tensor([len(tokenizer(text)["input_ids"]) for text in texts])
    expected = (lengths // 6 + 1).clamp(max=4)
    assert len(set(expected.tolist())) > 2
    engine = Engine(model, tokenizer, Policy(ByLength()))
    assert engine.predict(texts).exit_layers.tolist() == expected.tolist()
    assert (engine.with_policy(Policy(ByLength(), Sure(0.8))).predict(texts).exit_layers >= expected).all()
    with pytest.raises(TypeError, match="has no short form; those that have: full, constant"):
        format_policy(engine.policy)


class NotClass2(ExitRule):
    """Who is sure leaves unless the answer is class 2."""

    def score(self, layer, logits, previous, streak):
        scores = super().score(layer, logits, previous, streak)
        return replace(scores, leaves=scores.leaves & (scores.prediction != 2))


class OddExits:
    """A leave without any attribute."""

    def rule(self, model):
        return NotClass2({layer: 0.85 for layer in model.config.exit_layers[:-1] if layer % 2})


class PooledOddExits(OddExits):
    regroup = "always"


@pytest.mark.parametrize("leave", [OddExits(), PooledOddExits()])
@pytest.mark.parametrize("start", [FirstExit(), AtLayer(2)])
def test_a_leave_of_ones_own(model, tokenizer, texts, start, leave):
    policy = Policy(start, leave)
    result = Engine(model, tokenizer, policy, token_budget=40).predict(texts)
    assert result.exit_layers.unique().numel() > 1
    for index, text in enumerate(texts):
        with torch.no_grad():
            exits = model(**tokenizer(text, return_tensors="pt"), output_exit_logits=True).exit_logits
        scored = [score_exits(exits[layer - 1], 0.85) for layer in (1, 3)]
        early = [layer for layer, own in zip((1, 3), scored, strict=True) if bool(own.leaves & (own.prediction != 2))]
        expected = min((layer for layer in early if start == FirstExit() or layer > 1), default=4)
        assert int(result.exit_layers[index]) == expected
        torch.testing.assert_close(result.logits[index], exits[expected - 1][0], atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="has no short form; those that have: full, constant"):
        format_policy(policy)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (None, TypeError, r"leave.rule\(model\) must be a ExitRule, got None"),
        (ExitRule({4: 0.5}), ValueError, r"some of this model's early exits \[1, 2, 3\], ascending, got \[4\]"),
        (ExitRule({2: 0.5, 1: 0.5}), ValueError, r"ascending, got \[2, 1\]"),
    ],
)
def test_what_a_leave_of_ones_own_must_give(model, tokenizer, monkeypatch, rule, error, message):
    monkeypatch.setattr(OddExits, "rule", lambda self, model: rule)
    with pytest.raises(error, match=message):
        Engine(model, tokenizer, Policy(FirstExit(), OddExits()))


def test_the_models_own_thresholds(model, tokenizer, texts):
    model.exit_config.thresholds = [0.9, 0.7, 0.8]
    for policy, layers in (("threshold", [1, 2, 3]), ("threshold,layers=1/3", [1, 3])):
        rule = Engine(model, tokenizer, policy).policy.rule(model)
        assert rule.thresholds == {layer: [0.9, 0.7, 0.8][layer - 1] for layer in layers}


def test_the_calibrated_policy_is_the_default(model, tokenizer):
    assert Engine(model, tokenizer).policy == FULL
    model.exit_config.policy = "threshold:0.4"
    assert Engine(model, tokenizer).policy == scored(0.4)
    assert Engine(model, tokenizer, "full").policy == FULL


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
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 1.0, learn=(), progress=False)
    with pytest.warns(UserWarning, match="of 56 samples all left at layer 1"):
        Engine(model, tokenizer, "predicted").predict(texts * 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, tokenizer, "constant:1").predict(texts * 7)


@pytest.mark.parametrize("policy", ["predicted", "predicted+threshold:0.8", "allocated:0.05+threshold:0.8", "allocated:0.05"])
def test_a_table_that_is_taken_away_is_missed(model, tokenizer, texts, policy):
    model.exit_table = build_exit_table(model, tokenizer, texts * 3, 0.8, progress=False, learn=("agreement",))
    engine = Engine(model, tokenizer, policy)
    model.exit_table = None
    with pytest.raises(ValueError, match="needs an exit table"):
        engine.predict(texts)
