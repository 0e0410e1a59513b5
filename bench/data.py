"""The folder of the data sets, and rows drawn from one."""

from __future__ import annotations

import os
import random
from pathlib import Path

from geep_triton.tokens.columns import Row


def data_folder() -> Path:
    """GEEP_DATA. Raises ValueError where it is not set or no folder."""
    folder = os.environ.get("GEEP_DATA", "")
    if not folder or not Path(folder).is_dir():
        raise ValueError(
            f"GEEP_DATA must name the folder of the data sets, each <name>/train.jsonl and test.jsonl, got {folder!r}"
        )
    return Path(folder)


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


def with_an_answer(rows: list[Row]) -> list[Row]:
    """The candidates of those questions that have a right answer."""
    answered = {row["text"] for row in rows if str(row["label"]) == "1"}
    return [row for row in rows if row["text"] in answered]
