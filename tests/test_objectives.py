"""What exits of scores and label sets learn by, and labels of the wrong kind."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import BertForSequenceClassification

from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.losses import CLASSES, LOGISTIC, SQUARED, objective_of
from geep_triton.training.metrics import exit_metric
from geep_triton.training.recipes import RECIPES
from tests.conftest import tiny_config
from tests.trainers import build

MULTI = "multi_label_classification"
TEXTS = ["the film was good", "bad", "a dull slow book", "they hated it"] * 4
KINDS = {
    "score": ({"num_labels": 1, "problem_type": "regression"}, [5.0, 1, 2.5, "1"] * 4, "mse"),
    "probability": ({"num_labels": 1, "problem_type": MULTI}, [1, 0, 0.25, 0.0] * 4, "mse"),
    "label sets": ({"num_labels": 3, "problem_type": MULTI}, [["a", "c"], ["b"], [], ["a"]] * 4, "f1"),
}
LABEL2ID = {"a": 0, "b": 1, "c": 2}


def rows_of(labels):
    return [{"text": text, "label": label} for text, label in zip(TEXTS, labels, strict=True)]


def data_of(labels, settings, tokenizer):
    label2id = LABEL2ID if settings["num_labels"] == 3 else {"LABEL_0": 0}
    return TextDataset(rows_of(labels), Encoder(tokenizer, 64), label2id, problem_type=settings["problem_type"], progress=False)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, torch.randn(5)),
        ({"num_labels": 3, "problem_type": MULTI}, torch.rand(5, 3).round()),
        ({"num_labels": 3, "problem_type": "single_label_classification"}, torch.tensor([0, 1, 2, 2, 0])),
    ],
)
def test_the_loss_on_labels_is_that_of_transformers(settings, labels):
    config, logits = tiny_config(**settings), torch.randn(5, settings["num_labels"])
    expected = BertForSequenceClassification(config).loss_function(labels, logits, config)
    torch.testing.assert_close(objective_of(config).learn(logits, labels, None), expected)


@pytest.mark.parametrize(("objective", "columns"), [(CLASSES, 3), (SQUARED, 1), (LOGISTIC, 1), (LOGISTIC, 4)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_imitation_ends_where_answers_are_equal(objective, columns, temperature):
    teacher = torch.randn(6, columns, requires_grad=True)
    student = teacher.detach().clone().requires_grad_()
    loss = objective.imitate(student, teacher, temperature)
    loss.backward()
    assert loss.detach().item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6
    assert teacher.grad is None
    assert objective.imitate(student + 1 if columns == 1 else student + torch.randn(6, columns), teacher, temperature) > 1e-4


def test_weights_of_labels_scale_their_losses():
    logits, labels = torch.randn(5, 3), torch.rand(5, 3).round()
    single = [LOGISTIC.learn(logits[:, [index]], labels[:, index], None) for index in range(3)]
    weighted = LOGISTIC.learn(logits, labels, torch.tensor([1.0, 0.0, 2.0]))
    torch.testing.assert_close(weighted, (single[0] + 2 * single[2]) / 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_trains_every_kind(kind, recipe, make_model, tokenizer, tmp_path):
    settings, labels, metric = KINDS[kind]
    gates = {"skip_gate": "mean"} if recipe == "smartbert" else {}
    model, data = make_model(**settings, **gates), data_of(labels, settings, tokenizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = build(model, tokenizer, tmp_path, recipe, data=data, max_steps=4, eval_dataset=data, learning_rate=1e-3)
    trainer.train()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("heads.1.") for name in changed)
    assert any(name.startswith("heads.4.") for name in changed) == (recipe != "frozen")
    found = trainer.evaluate()
    assert {f"eval_{metric}_exit_{layer}" for layer in model.config.exit_layers} | {f"eval_{metric}"} <= found.keys()
    assert all(math.isfinite(value) for value in found.values())


def test_metrics_by_hand(make_model):
    sets = make_model(num_labels=2, problem_type=MULTI).answers
    logits = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[-1.0, -1.0]]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert exit_metric(sets, logits, labels)[1].tolist() == [pytest.approx(2 * 2 / (3 + 3))]
    assert exit_metric(sets, -torch.ones(1, 1, 2), torch.zeros(1, 2))[1].tolist() == [1.0]
    score = make_model(num_labels=1).answers
    assert exit_metric(score, torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([2.0, 1.0]))[1].tolist() == [2.5]


@pytest.mark.parametrize(
    ("kind", "label", "message"),
    [
        ("score", "good", "row 15 has the label 'good', expected a finite number"),
        ("score", math.nan, "row 15 has the label nan, expected a finite number"),
        ("score", True, "row 15 has the label True, expected a finite number"),
        ("score", None, "row 15 has no label"),
        ("probability", 2.0, r"train_dataset: row 15 has the label 2.0, expected 0, 1 or a probability"),
        ("probability", ["a"], r"row 15 has the label \['a'\], expected 0, 1 or a probability"),
        ("label sets", "a", "row 15 has the label 'a', expected a list of names"),
        ("label sets", ["toxic"], "row 15 has the label 'toxic', unseen in training; known: a, b, c"),
        ("label sets", 1, "row 15 has the label 1, expected a list of names"),
    ],
)
def test_labels_of_the_wrong_kind(kind, label, message, make_model, tokenizer, tmp_path):
    settings, labels, _ = KINDS[kind]
    with pytest.raises(ValueError, match=message):
        build(make_model(**settings), tokenizer, tmp_path, "joint", data=data_of([*labels[:-1], label], settings, tokenizer))


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"num_labels": 1}, [1.0, math.inf], "row 1 has the label inf, expected a finite number"),
        ({"num_labels": 1}, [[1.0], [2.0]], r"row 0 has the label \[1.0\], expected a finite number"),
        ({"num_labels": 3, "problem_type": MULTI}, [[0.0, 1.0, 0.0], [0.0, 1.0]], "row 1 .* expected a list of 3 numbers"),
        ({"num_labels": 3, "problem_type": MULTI}, [[0.0, 2.0, 0.0]] * 2, "row 0 .* expected a list of 3 numbers from 0 to 1"),
        ({"num_labels": 3, "problem_type": MULTI}, [0, 1], "row 0 has the label 0, expected a list of 3 numbers"),
    ],
)
def test_labels_of_the_wrong_shape(settings, labels, message, make_model, tokenizer, tmp_path):
    data = [{"input_ids": [2, 3], "labels": label} for label in labels]
    with pytest.raises(ValueError, match=message):
        build(make_model(**settings), tokenizer, tmp_path, "joint", data=data)


def test_names_of_label_sets():
    assert label_names([{"label": ["b", "a"]}, {"label": []}, {"label": ["c"]}], MULTI) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="row 0 has the label 'a', expected a list of names"):
        label_names([{"label": "a"}], MULTI)
    with pytest.raises(ValueError, match="row 0 has the label \\['a'\\], expected a class"):
        label_names([{"label": ["a"]}])


def test_forward_has_the_loss_of_the_kind(make_model, tokenizer):
    inputs = tokenizer(TEXTS[:4], return_tensors="pt", padding=True)
    model = make_model(num_labels=1, problem_type=MULTI, exit_layers=[4])
    logits = model(**inputs).logits
    for labels in (torch.tensor([1, 0, 1, 0]), torch.tensor([[1.0], [0.0], [1.0], [0.0]])):
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float().view(4, 1))
        torch.testing.assert_close(model(**inputs, labels=labels).loss, expected)
    with pytest.raises(ValueError, match=r"labels must have shape \(4, 3\), got \(4,\)"):
        make_model(num_labels=3, problem_type=MULTI)(**inputs, labels=torch.zeros(4))


def test_new_exits_of_label_sets_start_at_the_frequencies_of_labels(make_model, tokenizer, tmp_path):
    settings, labels, _ = KINDS["label sets"]
    model, data = make_model(**settings), data_of(labels, settings, tokenizer)
    trained = next(iter(model.heads.values())).classifier.bias
    with torch.no_grad():
        trained.fill_(0.5)
    build(model, tokenizer, tmp_path, "joint", data=data, max_steps=1, learning_rate=0.0).train()
    assert trained.tolist() == [0.5] * 3
    for head in list(model.heads.values())[1:]:
        assert head.classifier.bias.sigmoid().tolist() == pytest.approx([0.5, 0.25, 0.25])


@pytest.mark.parametrize("weights", [None, [1.0, 1.0, 4.0]])
def test_a_model_that_is_made_for_each_training_starts_there_too_but_not_where_labels_have_weights(
    weights, make_model, tokenizer, tmp_path
):
    settings, labels, _ = KINDS["label sets"]
    data = data_of(labels, settings, tokenizer)
    trainer = build(
        None, tokenizer, tmp_path, "joint", data=data, max_steps=1, learning_rate=0.0, class_weights=weights,
        model_init=lambda: make_model(**settings),
    )  # fmt: skip
    trainer.train()
    expected = [0.5, 0.25, 0.25] if weights is None else [0.5, 0.5, 0.5]
    for head in trainer.model.heads.values():
        assert head.classifier.bias.sigmoid().tolist() == pytest.approx(expected)
