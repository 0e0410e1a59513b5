"""The served models: a MiniLM-L6 fine-tuned on sst2 as Hugging Face does it, and the same with exits and a promise."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

from bench.shapes import pretrained_folder
from geep_triton import give_exits
from geep_triton.files.rows import read_rows
from geep_triton.from_fine_tuned import UNFINISHED
from geep_triton.tokens.encoder import Encoder
from geep_triton.training.dataset import TextDataset

WORDS = 7  # a row of at least so many is taken for a sentence; the others are phrases cut from sentences
SERVED, FOR_EXITS, PHRASES = 20_000, 8_000, 8_000
MAX_LENGTH = 128
AGREEMENT = 0.98
LABELS = ("negative", "positive")


@dataclass(frozen=True)
class Material:
    """The rows of sst2's training file, none of them in two parts.

    Attributes:
        labelled: fine-tune the model.
        unlabelled: give it exits and calibrate them.
        served: are sent to the server, all different.
    """

    labelled: Sequence[dict[str, Any]]
    unlabelled: Sequence[str]
    served: Sequence[str]


@dataclass(frozen=True)
class Served:
    """Folders of trained models.

    Attributes:
        plain: a `BertForSequenceClassification`, for Hugging Face's pipeline.
        exits: the same with exits, calibrated. At full depth it answers as `plain`.
    """

    plain: Path
    exits: Path


def material(data: Path) -> Material:
    """Part the rows of `data`/sst2/train.jsonl, always in the same way."""
    rows = read_rows(data / "sst2" / "train.jsonl", required=("text", "label"))
    random.Random(0).shuffle(rows)
    long = [row for row in rows if len(row["text"].split()) >= WORDS]
    phrases = [row for row in rows if len(row["text"].split()) < WORDS]
    served, unlabelled, rest = long[:SERVED], long[SERVED : SERVED + FOR_EXITS], long[SERVED + FOR_EXITS :]
    return Material(
        [*rest, *phrases[:PHRASES]], [row["text"] for row in unlabelled], list(dict.fromkeys(row["text"] for row in served))
    )


def train(work: Path, given: Material) -> Served:
    """Train both models, unless they are there."""
    made = Served(work / "plain", work / "exits")
    if not (made.plain / "tokenizer_config.json").exists():  # the last that is written
        _fine_tune(made.plain, given.labelled, work / "checkpoints")
    if not (made.exits / "config.json").exists() or (made.exits / UNFINISHED).exists():
        give_exits(
            made.plain, given.unlabelled, output=made.exits, agreement=AGREEMENT, pooling="mean",
            max_length=MAX_LENGTH, truncation=True, progress=False,
        )  # fmt: skip
    return made


def _fine_tune(folder: Path, rows: Sequence[dict[str, Any]], checkpoints: Path) -> None:
    source = pretrained_folder()
    names = dict(enumerate(LABELS))
    ids = {name: index for index, name in names.items()}
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = BertForSequenceClassification.from_pretrained(source, id2label=names, label2id=ids)
    encoder = Encoder(tokenizer, MAX_LENGTH, truncation=True)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=2.0,
            per_device_train_batch_size=32,
            learning_rate=5e-5,
            warmup_steps=0.1,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
            seed=0,
        ),
        train_dataset=TextDataset(rows, encoder, ids, progress=False),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
