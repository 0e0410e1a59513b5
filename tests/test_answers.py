"""What logits say: classes, scores and sets of labels, and when two answers are the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from geep_triton import Engine
from geep_triton.answers import LabelSet, OneClass, Score, answers_of, kind_of
from geep_triton.engine.truth import true_answers
from geep_triton.exit_config import ExitConfig
from tests.conftest import tiny_config

MULTI = "multi_label_classification"


@pytest.mark.parametrize(
    ("settings", "kind", "type_"),
    [
        ({"num_labels": 2}, "classes", OneClass),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, "classes", OneClass),
        ({"num_labels": 3, "problem_type": MULTI}, "label sets", LabelSet),
        ({"num_labels": 1}, "score", Score),
        ({"num_labels": 1, "problem_type": "regression"}, "score", Score),
        ({"num_labels": 1, "problem_type": MULTI}, "score", Score),
    ],
)
def test_the_configuration_says_what_answers_are(settings, kind, type_):
    config = tiny_config(**settings)
    assert kind_of(config) == kind
    assert type(answers_of(config, ExitConfig())) is type_


def test_scores_on_both_sides_of_a_cut():
    answers = Score({0: "LABEL_0"}, decision=3.0)
    logits, others = torch.tensor([[3.0], [2.9], [5.0], [1.0]]), torch.tensor([[3.1], [3.0], [3.5], [2.0]])
    assert answers.agree(logits, others).tolist() == [True, False, True, True]
    assert answers.given(logits)[:, 0].tolist() == [True, False, True, False]
    assert Score({0: "a"}, decision=3.0, tolerance=0.5).agree(logits, others).tolist() == [True, False, False, False]
    assert Score({0: "a"}, tolerance=1.0).agree(logits, others).tolist() == [True, True, False, True]
    assert answers.right(logits, torch.tensor([4.0, 1.0, 2.0, 3.0])).tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match="two scores are compared by a decision .* or a tolerance"):
        Score({0: "a"}).agree(logits, others)
    with pytest.raises(ValueError, match="a score has no decision"):
        Score({0: "a"}, tolerance=1.0).given(logits)


def test_a_probability_is_a_score_with_a_cut_in_log_odds():
    answers = answers_of(tiny_config(num_labels=1, problem_type=MULTI), ExitConfig(decision=0.9))
    assert answers.cuts == (pytest.approx(math.log(9)),)
    assert answers.given(torch.tensor([[2.1], [2.3]]))[:, 0].tolist() == [False, True]
    assert answers.scores(torch.zeros(1, 1)).tolist() == [0.5]
    assert answers_of(tiny_config(num_labels=1, problem_type=MULTI), ExitConfig()).cuts == (0.0,)


def test_sets_of_labels():
    config = tiny_config(problem_type=MULTI)
    answers = answers_of(config, ExitConfig(decision=(0.5, 0.5, 0.9)))
    logits = torch.tensor([[1.0, -1.0, 2.0], [1.0, -1.0, 3.0], [0.0, -1.0, -9.0]])
    assert answers.given(logits).tolist() == [[True, False, False], [True, False, True], [True, False, False]]
    assert answers.agree(logits, logits[[2, 0, 1]]).tolist() == [True, False, False]
    truth = true_answers([["LABEL_0"], ["LABEL_2", "LABEL_0"], []], 3, config)
    assert answers.right(logits, truth).tolist() == [True, True, False]
    assert answers_of(config, ExitConfig(decision=0.3)).decision == (0.3,) * 3


@pytest.mark.parametrize(
    ("settings", "served", "message"),
    [
        ({"num_labels": 3}, {"decision": 0.5}, "decision is for .* got decision=0.5 .*problem_type 'regression' or"),
        ({"num_labels": 3}, {"tolerance": 0.5}, "tolerance is for scores"),
        ({"num_labels": 3, "problem_type": MULTI}, {"tolerance": 0.5}, "tolerance is for scores"),
        ({"num_labels": 3, "problem_type": MULTI}, {"decision": 3.0}, "probability.* must be between"),
        ({"num_labels": 3, "problem_type": MULTI}, {"decision": [0.5, 0.4]}, "one per label \\(3\\), got 2"),
        ({"num_labels": 1}, {"decision": [0.5]}, "decision must be one number for a score"),
        ({"num_labels": 1, "problem_type": MULTI}, {"decision": 1.0}, "probability.* must be between"),
    ],
)
def test_a_decision_that_does_not_fit_the_model(settings, served, message, make_model, tokenizer):
    model = make_model(**settings)
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    with pytest.raises(ValueError, match=message):
        _ = model.answers
    with pytest.raises(ValueError, match=message):
        Engine(model, tokenizer)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("decision", "3", TypeError), ("decision", math.nan, ValueError), ("tolerance", -1.0, ValueError),
     ("tolerance", True, TypeError), ("decision", math.inf, ValueError), ("decision", (0.5, None), TypeError),
     ("decision", np.array("x"), TypeError), ("decision", torch.tensor(True), TypeError), ("decision", {0.5}, TypeError)],
)  # fmt: skip
def test_a_decision_is_a_number(name, value, error):
    with pytest.raises(error, match=name):
        ExitConfig(**{name: value})


def test_a_decision_by_names_is_refused_with_what_is_expected():
    with pytest.raises(TypeError, match="a list of one for each label in their order, got {'toxic': 0.2}"):
        ExitConfig(decision={"toxic": 0.2})


@pytest.mark.parametrize("value", [3, np.float64(3), np.float32(3), np.int64(3), torch.tensor(3.0), torch.tensor(3)])
def test_a_decision_may_be_any_real_number(value, make_model, tokenizer, texts):
    model = make_model(num_labels=1)
    model.exit_config.decision = model.exit_config.tolerance = value
    assert type(model.exit_config.decision) is type(model.exit_config.tolerance) is float
    assert model.exit_config.digest() == ExitConfig(decision=3.0, tolerance=3.0).digest()
    found = Engine(model, tokenizer, "distance:0.5").predict(texts)
    model.exit_config.decision = 3.0
    assert torch.equal(found.exit_layers, Engine(model, tokenizer, "distance:0.5").predict(texts).exit_layers)


@pytest.mark.parametrize("value", [[0.5, 0.25, 0.75], np.array([0.5, 0.25, 0.75], np.float32), torch.tensor([0.5, 0.25, 0.75])])
def test_a_decision_for_each_label(value):
    assert ExitConfig(decision=value).decision == (0.5, 0.25, 0.75)
    served = ExitConfig()
    served.judge_by(value, None)
    assert (served.decision, served.tolerance) == ((0.5, 0.25, 0.75), None)


def test_an_old_file_keeps_its_digest():
    old = ExitConfig(policy="threshold:0.3", temperatures=(1.0, 2.0))
    assert old.digest() == "ebd47728aee04e973b9c8b350e32fde5364a496e6393ca7dc5424d0dd1982969"
    assert ExitConfig(policy="threshold:0.3", temperatures=(1.0, 2.0), decision=0.5).digest() != old.digest()


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([1.0, "x"], {"num_labels": 1}, "must be finite numbers from -1e\\+12 to 1e\\+12, got 'x'"),
        ([1.0, None], {"num_labels": 1}, "must be finite numbers .*, got None"),
        ([1.0, 10**400], {"num_labels": 1}, "must be finite numbers .*, got 1000"),
        ([1.0, 1e300], {"num_labels": 1}, "must be finite numbers .*, got 1e\\+300"),
        ([1.0], {"num_labels": 1}, r"one per text \(2\), got 1"),
        ([["LABEL_0"], "LABEL_1"], {"problem_type": MULTI}, "must be lists of names, got 'LABEL_1'"),
        (
            [[0, 1, 0], ["1"]],
            {"problem_type": MULTI, "id2label": {0: "0", 1: "1", 2: "2"}},
            r"different names, not a 0 or 1 for each label, got \[0, 1, 0\]",
        ),
        (
            [["LABEL_0"], ["toxic"]],
            {"problem_type": MULTI},
            "unknown label 'toxic'; labels are lists of names",
        ),
    ],
)
def test_labels_of_the_wrong_kind(labels, settings, message):
    with pytest.raises(ValueError, match=message):
        true_answers(labels, 2, tiny_config(**settings))


def test_predictions_in_the_unit_of_the_model(make_model, tokenizer, texts):
    model = make_model(num_labels=1, problem_type="regression")
    model.exit_config.decision = 0.1
    scored = Engine(model, tokenizer).predict(texts)
    assert torch.equal(scored.decisions, scored.scores >= 0.1)
    with pytest.raises(ValueError, match="label_sets are of multi-label models"):
        _ = scored.label_sets
    found = Engine(make_model(problem_type=MULTI), tokenizer).predict(texts)
    wanted = [[f"LABEL_{i}" for i, given in enumerate(row) if given] for row in (found.logits >= 0).tolist()]
    assert found.label_sets == wanted
    assert torch.equal(found.probabilities, found.logits.sigmoid())
    for name in ("labels", "scores", "decisions"):
        with pytest.raises(ValueError, match="read"):
            getattr(found, name)
