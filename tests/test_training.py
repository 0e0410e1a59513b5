"""Losses against hand-written loops; the trainer: every head learns, runs repeat and resume."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from geep_triton import MultiExitTrainer
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.losses import distillation_loss, geep_loss
from geep_triton.training.recipes import RECIPES, get_recipe
from geep_triton.training.stages import Batch
from tests.trainers import LABEL2ID, ROWS, train


def softmax(row):
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    return [w / sum(weights) for w in weights]


def cross_entropy_by_hand(logits, labels):
    return sum(-math.log(softmax(row)[y]) for row, y in zip(logits, labels, strict=True)) / len(labels)


def kl_by_hand(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax(t), softmax(s)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_geep_loss_equals_a_loop():
    exits = [torch.randn(5, 3, dtype=torch.float64) for _ in range(4)]
    shared = [torch.randn(5, 3, dtype=torch.float64) for _ in range(2)]
    labels = torch.tensor([0, 2, 1, 1, 0])
    full = exits[-1].tolist()
    expected = sum(cross_entropy_by_hand(logits.tolist(), labels.tolist()) for logits in [*shared, exits[-1]])
    expected += sum(kl_by_hand(logits.tolist(), full) for logits in exits[:-1])
    assert float(geep_loss(exits, shared, labels)) == pytest.approx(expected, abs=1e-9)


def test_geep_loss_of_a_model_without_early_exits_is_cross_entropy():
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(geep_loss([logits], [], labels), torch.nn.functional.cross_entropy(logits, labels))


def test_distillation_gives_no_gradient_to_the_teacher():
    student, teacher = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    distillation_loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0
    torch.testing.assert_close(distillation_loss(teacher, teacher), torch.tensor(0.0))


@pytest.mark.parametrize("exit_layers", [None, [4], [3, 4], [1, 4], [1, 2, 3, 4]])
def test_geep_recipe_by_hand_trains_every_head(make_model, tokenizer, texts, exit_layers):
    """The recipe's loss through forward equals sub-networks run one by one from the embeddings."""
    model = make_model(exit_layers=exit_layers)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    mask, labels = inputs["attention_mask"], torch.arange(len(texts)) % 3
    (stage,) = get_recipe("geep").stages
    loss = stage.loss(model(**inputs, **stage.forward), Batch(labels))

    def run(layers):
        hidden = model.bert.embeddings(inputs["input_ids"], inputs["token_type_ids"])
        for layer in layers:
            hidden = model.bert.encoder.layer[layer - 1](hidden, model.layer_mask(hidden, mask))
        return hidden

    early = model.config.exit_layers[:-1]
    sub_networks = sorted({*early, 3})  # K = {1..E} + {L-1}
    teacher = {k: model.heads["4"](run([*range(1, k + 1), 4]), mask) for k in sub_networks}
    expected = sum(torch.nn.functional.cross_entropy(teacher[k], labels) for k in sub_networks)
    for k in early:
        expected = expected + distillation_loss(model.heads[str(k)](run(range(1, k + 1)), mask), teacher[3])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, parameter in model.heads.named_parameters():
        # Shifting all keys of an attention alike changes nothing, so only their bias may stay without gradient.
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def trained(make_model, tokenizer, folder, resume=None, **changes):
    model = make_model(num_labels=2, pooling="mean", initializer_range=0.1, head_dropout=0.0)
    return train(model, tokenizer, folder, resume=resume, **{"num_train_epochs": 150, **changes})


def test_trainer_learns_at_every_exit(make_model, tokenizer, tmp_path):
    metrics = trained(make_model, tokenizer, tmp_path).evaluate()
    assert {f"eval_accuracy_exit_{layer}" for layer in (1, 2, 3, 4)} <= set(metrics)
    for layer in (1, 2, 3, 4):
        assert metrics[f"eval_accuracy_exit_{layer}"] >= 0.9
    assert metrics["eval_accuracy"] == metrics["eval_accuracy_exit_4"]


def weights(trainer):
    return trainer.model.state_dict()


def test_same_seed_same_weights_and_resume_too(make_model, tokenizer, tmp_path):
    settings = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": 4}
    first = weights(trained(make_model, tokenizer, tmp_path / "a", **settings))
    second = weights(trained(make_model, tokenizer, tmp_path / "b", **settings))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=0, rtol=0, msg=name)
    resumed = trained(make_model, tokenizer, tmp_path / "c", resume=str(tmp_path / "a" / "checkpoint-4"), **settings)
    assert resumed.state.global_step == 8
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, first[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("step", [4, 5])
def test_a_resumed_training_is_the_uninterrupted_one_to_the_bit(make_model, tokenizer, tmp_path, step):
    """At an epoch's end, too, after which the uninterrupted one evaluates: that draws nothing from training's generator."""
    settings = {"num_train_epochs": 4, "save_strategy": "steps", "save_steps": step, "eval_strategy": "epoch"}
    whole = weights(trained(make_model, tokenizer, tmp_path / "a", **settings))
    resumed = trained(make_model, tokenizer, tmp_path / "b", resume=str(tmp_path / "a" / f"checkpoint-{step}"), **settings)
    assert resumed.state.global_step == 8
    for name, value in weights(resumed).items():
        assert torch.equal(value, whole[name]), name


def test_evaluation_draws_nothing_from_the_generator(make_model, tokenizer, tmp_path):
    trainer = trained(make_model, tokenizer, tmp_path, num_train_epochs=1)
    before = torch.get_rng_state()
    trainer.evaluate()
    trainer.predict(trainer.eval_dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_plain_trainer_trains_every_head_too(make_model, tokenizer, tmp_path):
    model = make_model(num_labels=2)
    before = {name: value.clone() for name, value in model.heads.state_dict().items()}
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True, save_strategy="no", max_steps=2),
        train_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    moved = {name for name, value in model.heads.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"{layer}.classifier.weight" for layer in (1, 2, 3, 4)} <= moved


def test_mixed_precision(make_model, tokenizer, tmp_path):
    trainer = trained(make_model, tokenizer, tmp_path, bf16=True, use_cpu=True)
    assert trainer.model.dtype == torch.float32
    assert trainer.evaluate()["eval_accuracy"] >= 0.9


def test_training_drops_a_table_of_the_old_weights(make_model, tokenizer, texts, tmp_path, caplog):
    from geep_triton import build_exit_table

    model = make_model(num_labels=2)
    model.exit_table = build_exit_table(model, tokenizer, texts, 0.8, progress=False)
    model.exit_config.temperatures = [2.0] * 4
    model.exit_config.max_length = 32
    MultiExitTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], max_steps=1, save_strategy="no"),
        train_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID),
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()
    assert model.exit_table is None
    assert model.exit_config.temperatures is None
    assert model.exit_config.max_length is None
    assert "exit table is dropped" in caplog.text
    assert "exit temperatures are dropped" in caplog.text
    assert "max_length is dropped" in caplog.text


def test_arguments_that_would_replace_the_loss(make_model, tmp_path):
    for arguments, more in (({"label_smoothing_factor": 0.1}, {}), ({}, {"compute_loss_func": lambda *_: None})):
        with pytest.raises(ValueError, match="the recipe makes the loss"):
            MultiExitTrainer(
                model=make_model(num_labels=2),
                args=TrainingArguments(output_dir=str(tmp_path), report_to=[], **arguments),
                **more,
            )


def test_heads_may_learn_at_their_own_rate(make_model, tokenizer, tmp_path):
    model = make_model(num_labels=2)
    trainer = MultiExitTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], learning_rate=1e-5, weight_decay=0.1),
        head_learning_rate=1e-3,
    )
    groups = trainer.create_optimizer().param_groups
    rates = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        rate, decay = rates[id(parameter)]
        assert rate == (1e-3 if name.startswith("heads.") else 1e-5), name
        assert decay == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name
    with pytest.raises(ValueError, match="head_learning_rate must be between"):
        MultiExitTrainer(model=model, args=trainer.args, head_learning_rate=-1.0)


def test_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match="unknown recipe 'magic'; known: .*geep"):
        get_recipe("magic")
    assert all(get_recipe(name).name == name for name in RECIPES)


def test_one_class_has_nothing_to_learn(make_model, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    model = make_model(num_labels=1)
    model.config.problem_type = "single_label_classification"  # transformers refuses it only where a configuration is made
    with pytest.raises(ValueError, match="num_labels=1 has nothing to learn: set 'regression'"):
        MultiExitTrainer(model=model, args=arguments)
    with pytest.raises(TypeError, match="must be a MultiExitBert, got Linear"):
        MultiExitTrainer(model=torch.nn.Linear(2, 2), args=arguments)


def test_label_names():
    assert label_names([{"label": "b"}, {"label": "a"}, {"label": "b"}]) == ["a", "b"]
    assert label_names([{"label": 10}, {"label": 9}]) == ["9", "10"]
    with pytest.raises(ValueError, match="at least two classes, got \\['a'\\]"):
        label_names([{"label": "a"}])
    with pytest.raises(ValueError, match="got \\['a'\\]; a model of one label is told its name .* and takes 0, 1 or"):
        label_names([{"label": ["a"]}, {"label": []}], "multi_label_classification")
    with pytest.raises(ValueError, match="row 1 has no label"):
        label_names([{"label": "a"}, {"label": None}])
    with pytest.raises(ValueError, match="row 0 has the label 0.5, expected a class"):
        label_names([{"label": 0.5}, {"label": 1.5}])
    with pytest.raises(ValueError, match="missing column 'label'; columns: 'text'"):
        label_names([{"text": "a"}])
    assert label_names([{"label": np.int64(2)}, {"label": torch.tensor(1)}]) == ["1", "2"]
    assert label_names([{"label": np.array(["b", "a"])}, {"label": []}], "multi_label_classification") == ["a", "b"]
    for wrong in (np.float32(0.5), np.array([1, 0]), torch.tensor([1, 0]), {"a": 1}, {"a"}, b"a"):
        with pytest.raises(ValueError, match="row 1 has the label .*, expected a class"):
            label_names([{"label": "a"}, {"label": wrong}])


@pytest.mark.parametrize(
    ("settings", "label", "message"),
    [
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, ["good", "bad"], "a list of 2 numbers from 0 to 1"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, [None, 1.0], "a list of 2 numbers from 0 to 1"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, torch.tensor(1.0), "a list of 2 numbers from 0 to 1"),
        ({"num_labels": 1}, 1e300, "a finite number from -1e\\+12 to 1e\\+12"),
        ({"num_labels": 1}, 10**400, "a finite number from -1e\\+12 to 1e\\+12"),
    ],
)
def test_a_label_of_the_wrong_kind_is_named(settings, label, message, make_model, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    with pytest.raises(ValueError, match=f"train_dataset: row 0 has the label .*, expected {message}"):
        MultiExitTrainer(model=make_model(**settings), args=arguments, train_dataset=[{"input_ids": [5], "labels": label}])


def test_a_number_too_large_for_a_score_is_named(tokenizer):
    for label in (10**400, 1e300):
        with pytest.raises(ValueError, match="row 0 has the label 1.*, expected a finite number from -1e\\+12 to 1e\\+12"):
            TextDataset([{"text": "good", "label": label}], Encoder(tokenizer, 64), None, problem_type="regression")


def test_no_rows_are_named(tokenizer, make_model, tmp_path):
    for read in (label_names, lambda rows: TextDataset(rows, Encoder(tokenizer, 64), None)):
        with pytest.raises(ValueError, match="rows: expected at least one, got none"):
            read([])
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[])
    with pytest.raises(ValueError, match="train_dataset has no rows"):
        MultiExitTrainer(model=make_model(num_labels=2), args=arguments, train_dataset=[])


def test_evaluation_without_labels_is_refused(tokenizer, make_model, tmp_path):
    unlabelled = TextDataset([{"text": row["text"]} for row in ROWS], Encoder(tokenizer, 64), None)
    trainer = MultiExitTrainer(
        model=make_model(num_labels=2),
        args=TrainingArguments(output_dir=str(tmp_path), report_to=[], disable_tqdm=True),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    for rows in (unlabelled, [], {"a": unlabelled}):
        with pytest.raises(ValueError, match="evaluation needs rows with labels, but eval_dataset has no rows or no labels"):
            trainer.evaluate(rows)
    assert trainer.predict(unlabelled).predictions.shape == (len(ROWS), 4, 2)


def test_unseen_label_is_named(tokenizer):
    rows = [*ROWS, {"text": "good", "label": "meh"}]
    with pytest.raises(ValueError, match="row 16 has the label 'meh', unseen in training; known: neg, pos"):
        TextDataset(rows, Encoder(tokenizer, 64), {"neg": 0, "pos": 1})


def test_dataset_items(tokenizer):
    rows = [{"text": "good", "text_pair": "bad film", "label": "pos"}] * 3
    data = TextDataset(rows, Encoder(tokenizer, 64), {"neg": 0, "pos": 1}, window=2)
    assert len(data) == 3
    expected = tokenizer("good", "bad film")
    for item in (data[0], data[2]):
        assert item == {
            "input_ids": expected["input_ids"],
            "token_type_ids": expected["token_type_ids"],
            "labels": 1,
        }
