"""Rows, tokenizer and a new model for a data set of the grid."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from bench.claims.grid import HEADS, RANDOM_SHAPE, DataSet
from bench.shapes import pretrained_folder
from geep_triton import MultiExitBert, MultiExitBertConfig
from geep_triton.files.rows import read_rows
from geep_triton.tokens.columns import Row
from geep_triton.training.dataset import label_names


def data_folder() -> Path | None:
    """GEEP_DATA, None where it is not set. Raises ValueError where it is no folder."""
    folder = os.environ.get("GEEP_DATA")
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise ValueError(
            f"GEEP_DATA must name the folder of the data sets, each <name>/train.jsonl and test.jsonl, got {folder!r}"
        )
    return Path(folder)


def source() -> str:
    """Where the rows come from, whose subsets and splits differ: "GEEP_DATA" or "hub"."""
    return "hub" if data_folder() is None else "GEEP_DATA"


def rows_of(data_set: DataSet, limit: int | None = None) -> tuple[list[Row], list[Row]]:
    """(training rows, test rows), subsets drawn at random but always the same.

    Args:
        data_set: of the grid.
        limit: at most as many of each, to try the grid out.
    """
    parts = []
    folder = data_folder()
    for split, size in (("train", data_set.train), ("test", data_set.test)):
        if folder is None:
            rows = read_hub(data_set, split)
        else:
            rows = read_rows(folder / data_set.name / f"{split}.jsonl", required=("text", "label"))
        if data_set.metric == "map":
            rows = with_an_answer(rows)
        size = min(len(rows) if size is None else size, len(rows) if limit is None else limit)
        parts.append(rows if size == len(rows) else draw(rows, size, whole_questions=data_set.metric == "map"))
    return parts[0], parts[1]


def draw(rows: list[Row], size: int, whole_questions: bool) -> list[Row]:
    """`size` rows at random; or all candidates of random questions, as many as hold at least `size`."""
    generator = random.Random(0)
    if not whole_questions:
        return generator.sample(rows, size)
    questions: dict[str, list[Row]] = {}
    for row in rows:
        questions.setdefault(row["text"], []).append(row)
    drawn: list[Row] = []
    for question in generator.sample(list(questions), len(questions)):
        if len(drawn) < size:
            drawn += questions[question]
    return drawn


def read_hub(data_set: DataSet, split: str) -> list[Row]:
    """A split from the hub, its columns named as ours, without unlabelled rows.

    Raises:
        ValueError: a data set that the hub lacks.
    """
    from datasets import load_dataset

    hub = data_set.hub
    if hub is None:
        raise ValueError(f"{data_set.name} is not on the hub: GEEP_DATA must name the folder of the data sets")
    rows = load_dataset(hub.path, hub.config, split=hub.test if split == "test" else split)
    return [{ours: row[theirs] for ours, theirs in hub.columns.items()} for row in rows if row[hub.columns["label"]] != -1]


def with_an_answer(rows: list[Row]) -> list[Row]:
    """The candidates of those questions that have a right answer."""
    answered = {row["text"] for row in rows if str(row["label"]) == "1"}
    return [row for row in rows if row["text"] in answered]


def tokenizer_of(data_set: DataSet) -> PreTrainedTokenizerBase:
    """Its model's."""
    if data_set.model == "random":
        folder = data_folder()
        if folder is None:
            raise ValueError(f"{data_set.name} needs GEEP_DATA, the folder with vocab/bert-base-chinese.txt")
        return BertTokenizer(vocab=str(folder / "vocab" / "bert-base-chinese.txt"))
    return AutoTokenizer.from_pretrained(pretrained_folder())


def fresh_model(data_set: DataSet, tokenizer: PreTrainedTokenizerBase, rows: list[Row], seed: int) -> MultiExitBert:
    """A model whose new weights follow from the seed."""
    torch.manual_seed(seed)
    names = label_names(rows)
    labels: dict[str, Any] = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    if data_set.model == "pretrained":
        return MultiExitBert.from_pretrained(pretrained_folder(), num_labels=len(names), **labels, **HEADS)
    return MultiExitBert(
        MultiExitBertConfig(vocab_size=len(tokenizer), num_labels=len(names), **labels, **RANDOM_SHAPE, **HEADS)
    )
