"""Whoever answers rows in these tests: it counts letters, which needs no model."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from geep_triton.files.answerer import Answered
from geep_triton.files.crew import Here
from geep_triton.files.readers import Values
from geep_triton.files.run import Report, answer_files
from geep_triton.files.settings import Settings


class Lengths:
    """Says how long a text and its pair are. An empty text, null and anything else cannot be answered.

    Args:
        window: rows answered together.
        seconds: that an answer takes.
    """

    wanted: Sequence[str] = ("text",)
    optional: Sequence[str] = ("text_pair",)

    def __init__(self, window: int = 7, seconds: float = 0.0) -> None:
        self.types = {"length": pa.int64(), "third": pa.float32(), "both": pa.list_(pa.int64())}
        self.window = window
        self.seconds = seconds
        self.windows: list[list[Values]] = []

    def answer(self, rows: Sequence[Values]) -> Answered:
        self.windows.append(list(rows))
        time.sleep(self.seconds)
        answers: list = []
        for text, pair in rows:
            if isinstance(text, str) and text:
                third = pa.scalar(len(text) / 3, pa.float32()).as_py()
                answers.append({"length": len(text), "third": third, "both": [len(text), len(pair or "")]})
            else:
                answers.append("has an empty text" if text == "" else f"has a text that is not a string: {text!r}")
        return Answered(answers, [{} if isinstance(answer, str) else {"good": 1} for answer in answers])


def run(
    inputs: str | os.PathLike | Sequence[str | os.PathLike],
    output: Path,
    answerer: Lengths | None = None,
    told: list[str] | None = None,
    manifest: dict | None = None,
    **settings: object,
) -> Report:
    """A run whose answers are lengths."""
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    tell = (lambda message: None) if told is None else told.append
    answerer = answerer or Lengths()
    return answer_files(Here(answerer), given, output, Settings(**settings), manifest or {"model": "lengths"}, tell=tell)  # type: ignore[arg-type]
