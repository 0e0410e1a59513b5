"""Rows of a data set: to train on, to choose by, and to judge by."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bench.answers.data import contrasted
from bench.claims.sets import HELD_OUT, TUNING_ROWS, DataSet
from bench.data import data_folder, draw, with_an_answer
from geep_triton.files.rows import read_rows
from geep_triton.tokens.columns import Row


@dataclass(frozen=True)
class Rows:
    """Rows to train on, to choose thresholds, epochs and settings on, and to judge by. All are in random order."""

    train: list[Row]
    tune: list[Row]
    test: list[Row]


def rows_of(data_set: DataSet, limit: int | None = None) -> Rows:
    """The same rows for all arms and seeds.

    Args:
        data_set: where there is no dev split, part of the training rows becomes tuning rows. Of a data set that ranks, dev and
            test keep whole questions, and those alone that have a right answer.
        limit: at most so many rows of each part, to try it out.

    Raises:
        ValueError: GEEP_DATA is no folder, or it lacks a file of the data set.
    """
    folder = data_folder()
    ranks = data_set.metric == "map"

    def read(split: str, size: int) -> list[Row]:
        path = folder / data_set.name / f"{split}.jsonl"
        if not path.is_file() and split != "dev":
            raise ValueError(f"GEEP_DATA must have {data_set.name}/{split}.jsonl, there is no {path}")
        rows = read_rows(path, required=("text", "label")) if path.is_file() else []
        whole = ranks and split != "train"
        if ranks:
            rows = with_an_answer(rows) if whole else contrasted(rows, random.Random(0))
        return draw(rows, min(len(rows), size if limit is None else min(size, limit)), whole)

    train, tune, test = read("train", data_set.train), read("dev", TUNING_ROWS), read("test", data_set.test)
    if not tune:
        held_out = min(TUNING_ROWS, round(HELD_OUT * len(train)))
        train, tune = train[held_out:], train[:held_out]
    return Rows(train, tune, test)
