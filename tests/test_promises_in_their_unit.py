"""Promises about scores, sets of labels and classes: how often they are broken, what they refuse, what is saved."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom

from geep_triton import Engine, MultiExitBert, audit, calibrate
from geep_triton.policies.text import parse_policy
from geep_triton.promises.simulate import simulate
from geep_triton.tokens.ragged import Tokens
from tests.conftest import tiny_config
from tests.recorded import CONFIDENCE, RecordedEngine, policy_found, simulated

MULTI = "multi_label_classification"
SAMPLES, EXITS, SPLITS = 4000, 5, 50
CASES = {
    "same side": ({"num_labels": 1}, {"decision": 3.0}, {"agreement": 0.95}),
    "within a tolerance": ({"num_labels": 1}, {"tolerance": 0.5}, {"agreement": 0.9}),
    "both": ({"num_labels": 1}, {"decision": 3.0, "tolerance": 1.0}, {"agreement": 0.9}),
    "same set": ({"num_labels": 4, "problem_type": MULTI}, {}, {"agreement": 0.9}),
    "each label": ({"num_labels": 4, "problem_type": MULTI}, {}, {"label_agreement": 0.95}),
    "recall of a label": ({"num_labels": 4, "problem_type": MULTI}, {}, {"class_recall": {"LABEL_1": 0.9}}),
    "recall of a class": ({"num_labels": 3}, {}, {"class_recall": {"LABEL_2": 0.9}, "agreement": 0.85}),
    "recall of a decision": ({"num_labels": 1}, {"decision": 3.0}, {"class_recall": {"LABEL_0": 0.9}}),
}


def recorded(config):
    """Exits [N, E, C] whose errors get smaller with depth; scores lie around 3."""
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(SAMPLES, 1, config.num_labels, generator=generator)
    errors = torch.randn(SAMPLES, EXITS, config.num_labels, generator=generator)
    return truth + (3 if config.num_labels == 1 else 0) + errors * torch.tensor([1.5, 0.8, 0.3, 0.1, 0.0])[:, None]


def losses(answers, name, label, given, full):
    """[M], whether a promise is broken, for the samples that it is about; written out again."""
    if name == "agreement":
        return ~answers.agree(given, full)
    if name == "label_agreement":
        return answers.given(given)[:, label] != answers.given(full)[:, label]
    having = answers.given(full)[:, label]
    return ~answers.given(given)[having, label]


@pytest.mark.parametrize(
    ("case", "method"),
    [*((case, "learn-then-test") for case in CASES), ("same side", "conformal"), ("recall of a class", "conformal")],
)
def test_how_often_a_promise_is_broken(case, method, monkeypatch):
    settings, served, promises = CASES[case]
    monkeypatch.setattr("geep_triton.promises.families.SETTINGS", 8)
    monkeypatch.setattr("geep_triton.promises.families.CAUTIOUS_SETTINGS", 4)
    monkeypatch.setattr("geep_triton.promises.search.speeds_of", simulated)
    monkeypatch.setattr("geep_triton.promises.search.spread", lambda curve: set())
    model = MultiExitBert(tiny_config(num_hidden_layers=EXITS, **settings))
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    logits, tokens = recorded(model.config), Tokens.from_lists([[5]] * SAMPLES)
    engine, answers, full = RecordedEngine(model, tokens, logits), model.answers, logits[:, -1]
    generator = torch.Generator().manual_seed(0)
    broken, risks, depths = 0, [], []
    for _ in range(SPLITS):
        rows = torch.randperm(SAMPLES, generator=generator)
        rows, others = rows[:700], rows[700:]
        confidence = CONFIDENCE if method == "learn-then-test" else None
        result = policy_found(engine, rows.tolist(), None, promises, method, confidence, rounds=1, speed_samples=1)
        policy = parse_policy(result.chosen.policy)
        exits = simulate(model, policy, tokens.select(others), logits[others])
        given = logits[others, exits]
        depths.append(float((exits + 1).double().mean()))
        excess = []
        for name, value in promises.items():
            shares = value if isinstance(value, dict) else dict.fromkeys(model.config.label2id, value)
            for label, share in shares.items():
                loss = losses(answers, name, model.config.label2id[label], given, full[others])
                excess.append(float(loss.double().mean()) - (1 - share))
        broken += max(excess) > 0
        risks.append(max(excess))
    assert sum(depths) / SPLITS < 0.9 * EXITS  # layers are saved, so that something is at stake
    if method == "learn-then-test":
        assert broken <= binom.ppf(0.999, SPLITS, 1 - CONFIDENCE)
    else:  # on average, with room for what a mean over the splits varies by
        assert sum(risks) / SPLITS <= 3 * torch.tensor(risks).std().item() / math.sqrt(SPLITS)


@pytest.mark.parametrize(
    ("settings", "promises", "message"),
    [
        ({"num_labels": 1}, {"agreement": 0.9}, "compared by a decision .* or a tolerance"),
        ({"num_labels": 1}, {"class_recall": {"LABEL_0": 0.9}, "tolerance": 1.0}, "class_recall of a score needs a decision"),
        ({"num_labels": 1}, {"agreement": 0.9, "decision": 3.0, "speedup": 2.0}, "or several of agreement, .* got agreement"),
        ({"num_labels": 3}, {"agreement": 0.9, "decision": 0.5}, "decision is for scores and label sets"),
        ({"num_labels": 3}, {"label_agreement": 0.9}, "label_agreement needs a model of label sets, got one of classes"),
        ({"num_labels": 3}, {"class_recall": {"toxic": 0.9}}, "class_recall must name labels of the model"),
        ({"num_labels": 3}, {"class_recall": {}}, "class_recall must name labels of the model"),
        ({"num_labels": 3}, {"class_recall": {"LABEL_0": 1.5}}, "class_recall must be between 0.5 and"),
        ({"problem_type": MULTI}, {"label_agreement": {"LABEL_0": 0.9, "x": 0.9}}, "label_agreement must name labels"),
        ({"problem_type": MULTI}, {"agreement": 0.9, "tolerance": 0.1}, "tolerance is for scores"),
    ],
)
def test_a_promise_that_the_model_cannot_be_held_to(settings, promises, message, make_model, tokenizer, many):
    model = make_model(**settings)
    with pytest.raises(ValueError, match=message):
        calibrate(Engine(model, tokenizer), many, **promises)
    assert model.exit_config.decision is None
    assert model.exit_config.tolerance is None
    with pytest.raises(TypeError, match="class_recall must map names of classes to shares"):
        calibrate(Engine(make_model(), tokenizer), many, class_recall=0.9)


def test_a_cut_outside_the_scores_leaves_everybody_at_once(make_model, tokenizer, many):
    """All scores are on one side, which the first exit knows."""
    model = make_model(num_labels=1, pooling="mean")
    with pytest.warns(UserWarning, match=r"scores of all 400 texts lie on one side of the decision 1e\+06 \(they are .* to"):
        found = calibrate(Engine(model, tokenizer), many, agreement=0.9, decision=1e6, rounds=1, speed_samples=20)
    far = next(candidate for candidate in found.candidates if candidate.family == "distance")
    assert (far.agreement, far.mean_layers) == (1.0, 1.0)
    assert found.chosen.agreement == 1.0


@pytest.mark.parametrize(
    ("settings", "bias", "told"),
    [({"num_labels": 3}, [0.0, 1e4, 0.0], r"\['LABEL_1'\]"), ({"num_labels": 2, "problem_type": MULTI}, [-1e4, -1e4], r"\[\]")],
)
def test_one_answer_to_all_texts_is_told(settings, bias, told, make_model, tokenizer, many):
    model = make_model(**settings)
    with torch.no_grad():
        model.heads["4"].classifier.bias.copy_(torch.tensor(bias))
    with pytest.warns(UserWarning, match=f"gives all 400 texts the same answer, {told}: that exits agree shows little"):
        calibrate(Engine(model, tokenizer), many, agreement=0.8, rounds=1, speed_samples=20)


def test_a_recall_of_too_few_texts_is_refused(make_model, tokenizer, many):
    model = make_model(num_labels=3)
    with torch.no_grad():
        model.heads["4"].classifier.bias[1] -= 1e4
    with pytest.raises(ValueError, match=r"class_recall of 'LABEL_1'=0.9 \(of all 400 texts, .* at least \d+ are"):
        calibrate(Engine(model, tokenizer), many, class_recall={"LABEL_1": 0.9})


def test_what_was_promised_is_saved_and_watched(make_model, tokenizer, many, tmp_path):
    model = make_model(num_labels=1, pooling="mean")
    engine = Engine(model, tokenizer)
    promises = {"agreement": 0.8, "class_recall": {"LABEL_0": 0.7}}
    cut = round(float(engine.predict(many).scores.median()), 3)
    found = calibrate(engine, many, **promises, decision=cut, rounds=1, speed_samples=20)
    assert found.promises == promises
    assert model.exit_config.decision == cut
    engine.save_pretrained(tmp_path)
    again = Engine.from_pretrained(tmp_path)
    assert audit(again).promised == 0.8
    assert audit(again, recall_of="LABEL_0").promised == 0.7
    again.model.exit_config.decision = cut + 1
    with pytest.warns(UserWarning, match="table, temperatures or decision have changed"):
        assert audit(again).promised is None
    engine.model.exit_config.decision = cut + 1  # without an audit, the next answers tell
    with pytest.warns(UserWarning, match="table, temperatures or decision have changed"):
        engine.predict(many[:3])
    assert engine.promise is None
    again.model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"calibrated with decision .*, now .*: its policy is used, but its promise"):
        assert Engine.from_pretrained(tmp_path).promise is None
