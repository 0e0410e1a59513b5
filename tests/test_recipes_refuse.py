"""What users get wrong about recipes."""

from __future__ import annotations

import pytest
from torch.utils.data import IterableDataset, Subset
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    SchedulerType,
    TrainingArguments,
)

from geep_triton import MultiExitTrainer
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.curriculum import Curriculum
from geep_triton.training.dataset import TextDataset
from geep_triton.training.recipes import get_recipe
from geep_triton.training.trainer import WANT_METRICS
from tests.trainers import LABEL2ID, ROWS, build


def test_early_stopping_knows_no_stages(make_model, tokenizer, tmp_path, caplog):
    """It would end the training before the exits are trained; the best checkpoint may be one from before."""
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "num_train_epochs": 2}
    settings["eval_dataset"] = TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID)
    stop = EarlyStoppingCallback()
    with pytest.raises(ValueError, match="EarlyStoppingCallback could end recipe 'fastbert' in the first of its 2 stages"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "fastbert", callbacks=[stop], **settings).train()
    for recipe, warns in (("fastbert", True), ("berxit", False)):
        caplog.clear()
        build(make_model(num_labels=2), tokenizer, tmp_path, recipe, **settings).train()
        assert ("load_best_model_at_end may choose a checkpoint from before" in caplog.text) == warns


def test_what_a_recipe_does_not_go_with(make_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="row 0 has the label 1, expected a list of 2 numbers from 0 to 1, one per label"):
        build(make_model(num_labels=2, problem_type="multi_label_classification"), tokenizer, tmp_path, "joint")
    with pytest.raises(ValueError, match="class_weights are for classes and label sets, but the model answers with one score"):
        build(make_model(num_labels=1), tokenizer, tmp_path, "joint", class_weights=[1.0])
    balanced = {"class_weights": "balanced", "data": [{"input_ids": [2, 3], "labels": [0.0, 1.0]}]}
    with pytest.raises(ValueError, match="class_weights 'balanced' are for classes"):
        build(make_model(num_labels=2, problem_type="multi_label_classification"), tokenizer, tmp_path, "joint", **balanced)
    with pytest.raises(ValueError, match="gate_learning_rate would be ignored: the model has no skip gates"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", gate_learning_rate=1e-3)
    with pytest.raises(TypeError, match="teacher must be a transformers model, got 'bert' of type str"):
        build(make_model(num_labels=2), tokenizer, tmp_path, get_recipe("distillation", pairing="teacher"), teacher="bert")


@pytest.mark.parametrize(
    ("difficulty", "error", "message"),
    [
        ([0.0, None] * 8, ValueError, "difficulty has no number for 8 samples, the first being 1"),
        (["easy"] * 16, TypeError, "difficulty must be one number per training sample"),
        ([0.0] * 3, ValueError, r"one number per training sample \(16\), got \(3,\)"),
    ],
)
def test_bad_difficulty(make_model, tokenizer, tmp_path, difficulty, error, message):
    with pytest.raises(error, match=message):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", curriculum=Curriculum(), difficulty=difficulty)


def test_a_stream_has_no_curriculum(make_model, tokenizer, tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID)

    with pytest.raises(ValueError, match="a curriculum chooses its samples: train_dataset must have a length"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "joint", data=Stream(), curriculum=Curriculum(), max_steps=2)


def test_a_model_made_anew_for_each_training(make_model, tokenizer, tmp_path):
    """With model_init, a recipe's own modules go with the model that trains."""
    trainer = MultiExitTrainer(
        model_init=lambda: make_model(num_labels=2, skip_gate="mean"),
        args=TrainingArguments(str(tmp_path), report_to=[], disable_tqdm=True, max_steps=2, save_strategy="no", use_cpu=True),
        train_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID),
        data_collator=DataCollatorWithPadding(tokenizer),
        recipe="smartbert",
    )
    trainer.train()
    assert trainer.model.auxiliary is None


def test_settings_are_checked():
    assert get_recipe("fastbert", finetune=0.25).settings == {"finetune": 0.25}
    for name, settings, message in (
        ("magic", {}, "unknown recipe 'magic'; known: berxit, deebert, distillation, .*pabee"),
        ("fastbert", {"speed": 1}, "recipe 'fastbert' has no setting 'speed'; known: finetune"),
        ("geep", {"speed": 1}, "recipe 'geep' has no setting 'speed'; known: none"),
        ("fastbert", {"finetune": 1.5}, "finetune must be between 0.0 and 1.0"),
        ("distillation", {"pairing": "first"}, "unknown pairing 'first'; known: deeper, last, next, teacher"),
        ("distillation", {"order": "random"}, "unknown order 'random'"),
        ("distillation", {"temperature": 0.0}, "temperature must be between"),
        ("distillation", {"pairing": "teacher", "feature": 1.0}, "feature must be 0 with pairing 'teacher'"),
    ):
        with pytest.raises(ValueError, match=message):
            get_recipe(name, **settings)
    with pytest.raises(ValueError, match="settings finetune go with a recipe's name"):
        get_recipe(get_recipe("geep"), finetune=1.0)


def test_what_cannot_be_trained(make_model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"trains 'early heads', but this model has no such .* its exits are \[4\]"):
        build(make_model(num_labels=2, exit_layers=[4]), tokenizer, tmp_path, "fastbert").train()
    unlabelled = TextDataset([{"text": row["text"]} for row in ROWS], Encoder(tokenizer, 64), None)
    with pytest.raises(ValueError, match="recipe 'geep' needs labels, but the batch has only input_ids, attention_mask"):
        build(make_model(num_labels=2), tokenizer, tmp_path, "geep", data=Subset(unlabelled, range(4))).train()
    known = [schedule for schedule in WANT_METRICS if schedule in {str(kind.value) for kind in SchedulerType}]
    assert "reduce_lr_on_plateau" in known
    for schedule in known:
        with pytest.raises(ValueError, match="lr_scheduler_type .* cannot start anew with each stage of .* 'fastbert'"):
            build(
                make_model(num_labels=2), tokenizer, tmp_path, "fastbert", lr_scheduler_type=schedule,
                eval_strategy="epoch", eval_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID),
            ).train()  # fmt: skip
