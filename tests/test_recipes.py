"""Recipes through the trainer: what trains when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import Subset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    TrainerCallback,
)

from geep_triton import MultiExitBert
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import RECIPES, get_recipe
from geep_triton.training.stages import Batch, Recipe, Stage
from tests.conftest import WORDS
from tests.trainers import LABEL2ID, ROWS, build, changed, copied


class Snapshot(TrainerCallback):
    """Keeps the weights, and which modules drop out, after some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.training: dict[int, dict[str, bool]] = {}

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step in self.steps:
            self.weights[state.global_step] = copied(model)
            self.training[state.global_step] = {name: module.training for name, module in model.named_modules()}


def test_stages_divide_the_training():
    stages = tuple(Stage(lambda output, batch: None, share=share) for share in (1.0, 2.0, 1.0))
    recipe = Recipe("three", stages)
    assert recipe.bounds(8) == [0, 2, 6, 8]
    assert [recipe.at(step, 8) for step in (0, 1, 2, 5, 6, 7)] == [(0, 0.0), (0, 0.5), (1, 0.0), (1, 0.75), (2, 0.0), (2, 0.5)]
    turns = Recipe("turns", stages, alternating=True)
    assert [turns.at(step, 8)[0] for step in range(5)] == [0, 1, 2, 0, 1]
    assert turns.at(4, 8)[1] == 0.5
    with pytest.raises(ValueError, match="'three' divides the training into 3 stages, but 2 steps are too few for them"):
        recipe.bounds(2)
    with pytest.raises(ValueError, match="recipe 'none' has no stages"):
        Recipe("none", ())
    with pytest.raises(ValueError, match="unknown trains 'feet'; known: all, all but early heads, early heads, heads"):
        Stage(lambda output, batch: None, trains="feet")


@pytest.mark.parametrize("name", ["fastbert", "deebert"])
def test_two_steps_move_only_what_they_train(make_model, tokenizer, tmp_path, name):
    """Weight decay and momentum move nothing that is frozen, and a frozen backbone does not drop out."""
    model = make_model(num_labels=2)
    snapshot, before = Snapshot(5, 9), copied(model)
    trainer = build(model, tokenizer, tmp_path, name, num_train_epochs=3, callbacks=[snapshot])
    trainer.train()
    early = {key for key in before if key.startswith("heads.") and not key.startswith("heads.4.")}
    middle = copied(model) if trainer.state.max_steps == 5 else snapshot.weights[5]
    first_stage = round(trainer.state.max_steps / 2)
    assert trainer.state.max_steps == 9
    assert first_stage == 4  # so step 5 was the second stage's first
    moved = changed(before, middle)
    assert not moved.isdisjoint(key for key in before if key.startswith("bert.encoder.layer.0."))
    assert changed(middle, snapshot.weights[9]) <= early
    assert {f"heads.{layer}.classifier.weight" for layer in (1, 2, 3)} <= changed(middle, snapshot.weights[9])
    assert not snapshot.training[9]["bert.encoder.layer.0"]
    assert not snapshot.training[9]["bert.embeddings.dropout"]
    assert not snapshot.training[9]["heads.4"]
    assert snapshot.training[9]["heads.1"]
    assert all(parameter.requires_grad for parameter in model.parameters())
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates[0] == rates[first_stage] == 1e-3  # each stage starts its schedule anew
    assert rates[first_stage - 1] < 5e-4


def test_the_first_step_leaves_early_heads_alone(make_model, tokenizer, tmp_path):
    model = make_model(num_labels=2)
    before = copied(model)
    build(model, tokenizer, tmp_path, get_recipe("fastbert", finetune=1.0)).train()
    moved = changed(before, model.state_dict())
    assert not any(key.startswith(("heads.1", "heads.2", "heads.3")) for key in moved)
    assert "heads.4.classifier.weight" in moved


def test_what_the_user_froze_stays_frozen(make_model, tokenizer, tmp_path):
    model = make_model(num_labels=2)
    model.bert.embeddings.requires_grad_(False)
    before = copied(model)
    build(model, tokenizer, tmp_path, "fastbert").train()
    assert not any(key.startswith("bert.embeddings") for key in changed(before, model.state_dict()))
    assert not any(parameter.requires_grad for parameter in model.bert.embeddings.parameters())
    assert all(parameter.requires_grad for parameter in model.heads.parameters())


def test_exits_for_a_fine_tuned_model_leave_its_answers_alone(tokenizer, tmp_path):
    """The recipe 'frozen', on texts without labels: full-depth logits stay equal to the bit."""
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, num_labels=2,
        initializer_range=0.2,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path / "theirs")
    theirs = BertForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    model = MultiExitBert.from_pretrained(tmp_path / "theirs", pooling="mean")
    inputs = tokenizer([row["text"] for row in ROWS], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected, early = theirs(**inputs).logits, model.eval()(**inputs, exit_layer=1).logits
    unlabelled = TextDataset([{"text": row["text"]} for row in ROWS], Encoder(tokenizer, 64), None)
    build(model, tokenizer, tmp_path / "run", "frozen", data=unlabelled, num_train_epochs=20).train()
    model.save_pretrained(tmp_path / "ours")
    for after in (model.eval(), MultiExitBert.from_pretrained(tmp_path / "ours").eval()):
        with torch.no_grad():
            output = after(**inputs, output_exit_logits=True)
        assert torch.equal(output.logits, expected)
        assert not torch.equal(output.exit_logits[0], early)
    agreement = [(logits.argmax(-1) == expected.argmax(-1)).float().mean() for logits in output.exit_logits]
    assert min(agreement) >= 0.9


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "inverse_sqrt", "cosine_with_min_lr"])
def test_each_stage_has_the_learning_rates_of_a_training_of_its_own(make_model, tokenizer, tmp_path, schedule):
    """In every group of parameters, to the bit; also from a checkpoint on."""

    class Rates(TrainerCallback):
        def __init__(self):
            self.seen = []

        def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
            self.seen.append([group["lr"] for group in optimizer.param_groups])

    def rates(recipe, steps, resume=None, **changes):
        callback, model = Rates(), make_model(num_labels=2)
        trainer = build(
            model, tokenizer, tmp_path / "run", recipe, max_steps=steps, lr_scheduler_type=schedule, warmup_steps=0.3,
            callbacks=[callback], head_learning_rate=1e-2,
            lr_scheduler_kwargs={"min_lr": 1e-5} if schedule == "cosine_with_min_lr" else None, **changes,
        )  # fmt: skip
        trainer.train(resume)
        return callback.seen

    both = rates("fastbert", 12, save_strategy="steps", save_steps=4)
    first = rates(get_recipe("fastbert", finetune=1.0), 6)
    assert [max(group) for group in both] == [max(group) for group in first] * 2
    assert [min(group) for group in both] == [min(group) for group in first] * 2
    assert rates("fastbert", 12, str(tmp_path / "run" / "checkpoint-4")) == both[4:]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_trains_every_head_under_autocast(make_model, tokenizer, tmp_path, name):
    model = make_model(num_labels=2, skip_gate="attention" if name == "smartbert" else None)
    before = copied(model)
    trainer = build(model, tokenizer, tmp_path, name, bf16=True)
    trainer.train()
    heads = {1, 2, 3} if name == "frozen" else {1, 2, 3, 4}
    moved = changed(before, model.state_dict())
    assert {f"heads.{layer}.classifier.weight" for layer in heads} <= moved
    assert model.dtype == torch.float32
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    if name == "frozen":
        assert all(key.startswith(("heads.1", "heads.2", "heads.3")) for key in moved)


@pytest.mark.parametrize(
    ("name", "curriculum", "class_weights"),
    [
        ("joint", None, None), ("joint", None, [1.0, 3.0]), ("distillation", Curriculum(), [1.0, 3.0]),
        ("deebert", None, [1.0, 3.0]), ("deebert", Curriculum(), [1.0, 3.0]),
    ],
)  # fmt: skip
def test_accumulation_gives_the_same_step(make_model, tokenizer, tmp_path, name, curriculum, class_weights):
    results = []
    for batch, accumulate in ((16, 1), (4, 4)):
        model = make_model(num_labels=2, head_dropout=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        trainer = build(
            model, tokenizer, tmp_path, name, curriculum=curriculum, per_device_train_batch_size=batch, max_steps=2,
            gradient_accumulation_steps=accumulate, class_weights=class_weights,
        )  # fmt: skip
        trainer.train()
        results.append(trainer.state.log_history[0])
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)
    assert results[0]["grad_norm"] == pytest.approx(results[1]["grad_norm"], rel=1e-3)


def test_early_stopping_and_logging_callbacks(make_model, tokenizer, tmp_path):
    class Log(TrainerCallback):
        seen: list[dict] = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs))

    data = TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID)
    stop = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=1.0)
    trainer = build(
        make_model(num_labels=2), tokenizer, tmp_path, "joint", num_train_epochs=20, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="accuracy_exit_1", eval_dataset=data,
        callbacks=[stop, Log],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.epoch == 3.0  # the first counts as best, then patience runs out
    assert {"loss", "grad_norm", "learning_rate"} <= set(Log.seen[0])
    assert any("eval_accuracy_exit_1" in logs for logs in Log.seen)


def test_class_weights(make_model, tokenizer, tmp_path):
    rows = ROWS[:12]  # 8 of pos, 4 of neg
    data = TextDataset(rows, Encoder(tokenizer, 64), LABEL2ID)
    model = make_model(num_labels=2)
    trainer = build(model, tokenizer, tmp_path, "joint", data=data, class_weights="balanced")
    assert trainer.class_weights.tolist() == [12 / (2 * 4), 12 / (2 * 8)]
    for weights, message in (
        ([1.0], r"class_weights must be 'balanced' or 2 finite numbers from 0, got \[1.0\]"),
        ("even", "class_weights must be 'balanced' or a number per class, got 'even'"),
        ([1.0, -1.0], "or 2 finite numbers from 0"),
        ([1.0, float("inf")], "or 2 finite numbers from 0"),
    ):
        with pytest.raises(ValueError, match=message):
            build(model, tokenizer, tmp_path, "joint", data=data, class_weights=weights)
    for weights in (np.array([1.0, 3.0]), torch.tensor([1.0, 3.0])):
        assert build(model, tokenizer, tmp_path, "joint", class_weights=weights).class_weights.tolist() == [1.0, 3.0]
    renamed = [{"input_ids": [2, 5, 3], "label": label} for label in (0, 0, 1)]
    assert build(model, tokenizer, tmp_path, "joint", data=renamed, class_weights="balanced").class_weights.tolist() == [
        0.75,
        1.5,
    ]
    with pytest.raises(ValueError, match="needs labels in train_dataset, which has input_ids"):
        build(model, tokenizer, tmp_path, "joint", data=Subset([{"input_ids": [2, 5, 3]}], [0]), class_weights="balanced")
    with pytest.raises(ValueError, match="class_weights would be ignored: recipe 'frozen' reads no labels"):
        build(model, tokenizer, tmp_path, "frozen", data=data, class_weights="balanced")
    one = TextDataset(ROWS[:8], Encoder(tokenizer, 64), LABEL2ID)
    with pytest.raises(ValueError, match=r"'balanced' needs samples of every class, got \[0, 8\]"):
        build(model, tokenizer, tmp_path, "joint", data=one, class_weights="balanced")


def test_external_teacher(make_model, tokenizer, tmp_path):
    teacher = make_model(num_labels=2, hidden_size=16)
    before = copied(teacher)
    model = make_model(num_labels=2)
    recipe = get_recipe("distillation", pairing="teacher", alpha=5.0)
    build(model, tokenizer, tmp_path, recipe, teacher=teacher).train()
    assert changed(before, teacher.state_dict()) == set()
    other = make_model(num_labels=3)
    names = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    named, swapped = make_model(**names), make_model(num_labels=2, id2label={0: "b", 1: "a"}, label2id={"b": 0, "a": 1})
    for student, given, message in (
        (model, other, "teacher has 3 classes, the model 2"),
        (named, swapped, "teacher has the classes {0: 'b', 1: 'a'}, the model {0: 'a', 1: 'b'}"),
        (model, make_model(num_labels=2, vocab_size=99), "teacher has a vocabulary of 99"),
        (model, None, "recipe 'distillation' needs a teacher"),
    ):
        with pytest.raises(ValueError, match=message):
            build(student, tokenizer, tmp_path, recipe, teacher=given)
    with pytest.raises(ValueError, match="recipe 'geep' has no use for a teacher"):
        build(model, tokenizer, tmp_path, "geep", teacher=teacher)


def test_a_recipe_of_ones_own(make_model, tokenizer, tmp_path):
    def loss(output, batch: Batch) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(output.exit_logits[0], batch.labels)

    stage = Stage(loss, {"output_exit_logits": True}, trains=lambda name, last_layer: name.startswith("heads.1."))
    model = make_model(num_labels=2)
    before = copied(model)
    build(model, tokenizer, tmp_path, Recipe("first exit", (stage,))).train()
    assert {name.split(".")[1] for name in changed(before, model.state_dict())} == {"1"}


def test_predictions_keep_the_order_of_the_data(make_model, tokenizer, tmp_path):
    data = TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID)
    model = make_model(num_labels=2)
    trainer = build(model, tokenizer, tmp_path, "geep", train_sampling_strategy="group_by_length")
    assert trainer.predict(data).label_ids.tolist() == data.labels


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("name", "curriculum"), [("geep", None), ("fastbert", None), ("distillation", Curriculum())])
def test_half_precision_on_a_gpu(make_model, tokenizer, tmp_path, name, curriculum):
    model = make_model(num_labels=2)
    before = copied(model)
    changes = {"curriculum": curriculum, "fp16": True, "use_cpu": False, "class_weights": "balanced"}
    build(model, tokenizer, tmp_path, name, **changes).train()
    after = copied(model.cpu())
    assert all(torch.isfinite(value).all() for value in after.values())
    assert {f"heads.{layer}.classifier.weight" for layer in (1, 2, 3, 4)} <= changed(before, after)
