"""Trains the model of a cell, and records every exit's answers on texts of dev and test."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bench.answers.data import recorded_rows, split, training_rows
from bench.answers.tasks import BATCH_SIZE, E5, HEADS, RECIPE, Task, Trained
from bench.shapes import pretrained_folder
from bench.training import HEAD_LEARNING_RATE, declared, digest, train, training_arguments
from geep_triton import Engine, MultiExitBert
from geep_triton.engine.predictions import EveryExit
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.training.dataset import TextDataset, label_names
from geep_triton.training.metrics import exit_metric

SAVE_STEPS = 100
RECORD = "record.safetensors"


def folder_of(cell: Trained, work: Path, limit: int | None) -> Path:
    """Where a cell's model and record are."""
    return work / f"{cell.name}.{digest(declared(cell, limit))}"


def source_of(cell: Trained, e5: Path) -> Path:
    """The folder of a cell's pretrained model. That of e5 is made by hand from its package."""
    return e5 if cell.backbone.source == E5.source else pretrained_folder()


def settings_of(task: Task) -> dict[str, Any]:
    """How an engine cuts the texts of a task."""
    return {"max_length": task.max_length, "truncation": True}


def fresh_model(cell: Trained, folder: Path) -> MultiExitBert:
    """The pretrained model with new exits, whose weights follow from the seed."""
    torch.manual_seed(cell.seed)
    names = list(cell.task.labels or label_names(split(cell.task, "train"), cell.task.problem_type))
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    return MultiExitBert.from_pretrained(folder, num_labels=len(names), problem_type=cell.task.problem_type, **labels, **HEADS)


def dataset_of(task: Task, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> TextDataset:
    """Rows as the model takes them."""
    encoder = Encoder(tokenizer, task.max_length, truncation=True)
    return TextDataset(rows, encoder, model.config.label2id, progress=False, problem_type=task.problem_type)


def run_cell(cell: Trained, work: Path, e5: Path, deadline: float, limit: int | None = None) -> dict[str, Any]:
    """Train and record a cell, or go on with it.

    Args:
        cell: to run.
        work: folder for checkpoints, trained models and records.
        e5: folder of the 12-layer model.
        deadline: of `time.monotonic()`, after which the training stops.
        limit: at most so many samples, to try it out.

    Returns:
        What the training took, and the metric of each exit on the recorded texts.

    Raises:
        OutOfTime: at the deadline; call again to go on.
    """
    folder = folder_of(cell, work, limit)
    rows = training_rows(cell.task, limit)
    tokenizer = AutoTokenizer.from_pretrained(source_of(cell, e5))
    model = fresh_model(cell, source_of(cell, e5))
    train_set = dataset_of(cell.task, model, tokenizer, rows)
    epochs, learning_rate = cell.task.epochs * cell.backbone.epochs, cell.backbone.learning_rate
    arguments = training_arguments(
        folder / "checkpoints", epochs, BATCH_SIZE, learning_rate, cell.seed, save_steps=SAVE_STEPS, save_total_limit=1
    )
    trainer, spent = train(
        folder / "model",
        deadline,
        tokenizer,
        arguments,
        model=model,
        train_dataset=train_set,
        recipe=RECIPE,
        head_learning_rate=HEAD_LEARNING_RATE,
    )
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    judged = recorded_rows(cell.task, limit)
    engine = Engine(model.eval(), tokenizer, "full", **settings_of(cell.task))
    record = engine.every_exit(judged)
    save_record(record, folder / RECORD)
    targets = torch.tensor(dataset_of(cell.task, model, tokenizer, judged).labels)
    if cell.task.problem_type != "single_label_classification":
        targets = targets.float()
    metric, values = exit_metric(model.answers, record.logits, targets)
    shutil.rmtree(folder / "checkpoints")
    return {
        "samples": {"train": len(rows), "recorded": len(judged)},
        "steps": trainer.state.max_steps,
        "losses": losses,
        "training": spent,
        "exit_layers": model.config.exit_layers,
        "metric": metric,
        "by_exit": [float(value) for value in values],
    }


def save_record(record: EveryExit, path: Path) -> None:
    """Write tokens and every exit's logits, all or nothing."""
    tensors = {"logits": record.logits, "ids": record.tokens.ids, "offsets": record.tokens.offsets}
    if record.tokens.type_ids is not None:
        tensors["type_ids"] = record.tokens.type_ids
    part = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part)
    part.replace(path)


def load_record(path: Path) -> EveryExit:
    """What `save_record` wrote."""
    tensors = load_file(path)
    return EveryExit(Tokens(tensors["ids"], tensors["offsets"], tensors.get("type_ids")), tensors["logits"])
