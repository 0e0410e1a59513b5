"""Trainings of the tiny model on a few rows."""

from __future__ import annotations

import torch
from transformers import DataCollatorWithPadding, TrainingArguments

from geep_triton import MultiExitTrainer
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset

ROWS = [
    {"text": text, "label": label}
    for label, texts in {
        "pos": [
            "good film",
            "great soup",
            "we liked it",
            "a warm bright book",
            "very good",
            "not bad",
            "great",
            "it was good",
        ],
        "neg": [
            "bad film",
            "awful soup",
            "we hated it",
            "a cold dull book",
            "very bad",
            "not good",
            "awful",
            "it was bad",
        ],
    }.items()
    for text in texts
]
LABEL2ID = {"neg": 0, "pos": 1}
DIFFICULTY = [float(len(row["text"])) for row in ROWS]


def build(model, tokenizer, folder, recipe, data=None, curriculum=None, difficulty=DIFFICULTY, **changes) -> MultiExitTrainer:
    """A trainer of a few steps; arguments of the trainer's own are told from TrainingArguments' by name."""
    own = {
        name: changes.pop(name)
        for name in (
            "teacher",
            "class_weights",
            "callbacks",
            "eval_dataset",
            "head_learning_rate",
            "gate_learning_rate",
            "model_init",
        )
        if name in changes
    }
    values = {
        "num_train_epochs": 3, "per_device_train_batch_size": 6, "learning_rate": 1e-3, "weight_decay": 0.1, "seed": 3,
        "save_strategy": "no", "logging_steps": 1, "use_cpu": True,
    }  # fmt: skip
    return MultiExitTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), report_to=[], disable_tqdm=True, **{**values, **changes}),
        train_dataset=TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID) if data is None else data,
        data_collator=DataCollatorWithPadding(tokenizer),
        recipe=recipe,
        curriculum=curriculum,
        difficulty=None if curriculum is None else difficulty,
        **own,
    )


def train(model, tokenizer, folder, recipe="joint", resume=None, **changes) -> MultiExitTrainer:
    """A trainer that has trained, by batches of 8 and without weight decay, and evaluates on the same rows."""
    data = TextDataset(ROWS, Encoder(tokenizer, 64), LABEL2ID)
    model.config.label2id = LABEL2ID
    settings = {"per_device_train_batch_size": 8, "weight_decay": 0.0, "use_cpu": False, "eval_dataset": data}
    trainer = build(model, tokenizer, folder, recipe, **{**settings, **changes})
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def copied(model) -> dict[str, torch.Tensor]:
    """A model's weights as they are now."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before, after) -> set[str]:
    """Names of the weights that differ."""
    return {name for name, value in after.items() if not torch.equal(value, before[name])}
