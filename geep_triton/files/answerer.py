"""Who answers rows, and what answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from geep_triton.files.readers import Values

Answer: TypeAlias = dict[str, Any]


class BadRow(ValueError):
    """A row that cannot be answered. The message has the file, the row's number (from 1) and the reason."""


@dataclass(frozen=True)
class Answered:
    """The answers of a window.

    Attributes:
        answers: for each row, the values of the answer columns by name; or a text: why the row cannot be answered.
        counts: for each row, of what shall be told at the end.
    """

    answers: Sequence[Answer | str]
    counts: Sequence[Mapping[str, int]]


class Answering(Protocol):
    """What is known of answers before there are any.

    Attributes:
        wanted: the columns that are needed.
        optional: further columns, which may be missing.
        types: the columns of the answers.
        window: how many rows are answered together, unless the settings say so.
    """

    wanted: Sequence[str]
    optional: Sequence[str]
    types: Mapping[str, pa.DataType]
    window: int


class Answerer(Answering, Protocol):
    """Whoever answers rows."""

    def answer(self, rows: Sequence[Values]) -> Answered:
        """Answer a window of rows, each the values of `wanted` and `optional`. The same rows get the same answers."""
