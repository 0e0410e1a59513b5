"""Writes a shard again with the answers beside its columns."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from geep_triton.files.chunks import Chunk
from geep_triton.files.readers import open_reader
from geep_triton.files.targets import Target
from geep_triton.files.writers import check_writable, naming, writing
from geep_triton.saving import flush

CHUNK = 4096  # rows read and written together
ERROR = "error"  # the column that says why a row has no answers


@dataclass(frozen=True)
class AnswerColumns:
    """The columns that answers become.

    Attributes:
        schema: of them, with the prefix in their names.
        prefix: before the names that answers have.
        with_errors: whether a last column says why a row has none.
    """

    schema: pa.Schema
    prefix: str
    with_errors: bool

    @classmethod
    def of(cls, types: Mapping[str, pa.DataType], prefix: str, with_errors: bool) -> AnswerColumns:
        """Make them from the names and types of answers."""
        named = {**types, **({ERROR: pa.string()} if with_errors else {})}
        return cls(pa.schema([(f"{prefix}{name}", of) for name, of in named.items()]), prefix, with_errors)

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self.schema.names)

    def table(self, answers: Sequence[dict[str, Any] | str]) -> pa.Table:
        """A row for each answer; that of a text, which says why there is none, is empty."""
        rows = [{ERROR: answer} if isinstance(answer, str) else answer for answer in answers]
        start = len(self.prefix)
        return pa.table(
            [pa.array([row.get(of.name[start:]) for row in rows], of.type) for of in self.schema], schema=self.schema
        )


@dataclass(frozen=True)
class Shape:
    """The columns of an output.

    Attributes:
        carried: the columns of the input that are carried along; None: all that a row has.
        answers: the columns that come.
        names: all of them, where the format needs to know them before the first row.
        schema: all of them with types, where the format has types.
    """

    carried: tuple[str, ...] | None
    answers: AnswerColumns
    names: list[str]
    schema: pa.Schema | None

    @classmethod
    def of(cls, target: Target, carried: tuple[str, ...] | None, answers: AnswerColumns) -> Shape:
        """Find the columns of an output. For this, JSON lines are read where they become something else.

        Raises:
            ValueError: the values of a column are of types that do not go together, or the format has no such type. The error
                names the file.
        """
        if target.form.kind == "jsonl":
            return cls(carried, answers, [], None)
        reader = open_reader(target.shard.path)
        if target.form.is_text:
            return cls(carried, answers, [*(reader.all_columns() if carried is None else carried), *answers.names], None)
        schema = reader.schema()
        fields = [schema.field(name) for name in (schema.names if carried is None else carried) if name in schema.names]
        found = pa.schema([*fields, *answers.schema], metadata=schema.metadata)
        with naming(str(target.shard.path)):
            check_writable(target.form, found)
        return cls(carried, answers, [], found)


class Written(NamedTuple):
    """How many rows a shard has, how many of them have answers, how many could not be answered; counts of the answers."""

    rows: int
    answered: int
    bad: int
    counts: dict[str, int]


def write_shard(target: Target, part: Path, skipped: Path, answers: Iterator[bytes], shape: Shape, skips: bool) -> Written:
    """Write a shard into a temporary file, which is on the disk afterwards.

    Args:
        target: the shard.
        part: the temporary file.
        skipped: the file of rows that are left out; it is removed where there are none.
        answers: a line of JSON for each row: an object of answers, or a text that says why there are none; and its counts.
        shape: the columns of the output.
        skips: whether rows without answers are left out.

    Raises:
        ValueError: a value does not fit the format; the error names the file, the row and the column.
    """
    reader = open_reader(target.shard.path)
    rows = bad = 0
    counts: Counter[str] = Counter()
    with (
        naming(str(target.shard.path)),
        writing(part, target.form, shape.names, shape.schema, reader.is_stream) as write,
    ):
        for chunk in reader.chunks(CHUNK):
            found = []
            for line in islice(answers, len(chunk)):
                answer, counted = json.loads(line)
                found.append(answer)
                counts.update(counted)
            if len(found) != len(chunk):
                raise ValueError("it has more rows than it had when it was answered")
            left = [index for index, answer in enumerate(found) if skips and isinstance(answer, str)]
            keep = sorted(set(range(len(found))).difference(left))
            write(chunk.select(keep, shape.carried).beside(shape.answers.table([found[index] for index in keep])))
            if left:
                _note_skipped(skipped, chunk, left, found, rows, reader.word, first=not bad)
            rows += len(chunk)
            bad += sum(isinstance(answer, str) for answer in found)
    flush(part)
    if not (bad and skips):
        skipped.unlink(missing_ok=True)
    return Written(rows, rows - bad, bad, dict(counts))


def _note_skipped(
    path: Path, chunk: Chunk, left: Sequence[int], answers: Sequence[Any], before: int, word: str, first: bool
) -> None:
    """Add the rows that are left out, with the reasons, to their file. The first of a shard begin it anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w" if first else "a", encoding="utf-8", errors="backslashreplace") as file:
        for index, row in zip(left, chunk.select(left, None).rows(), strict=True):
            line = {word: before + index + 1, "reason": answers[index], "values": row}
            file.write(json.dumps(line, ensure_ascii=False, default=repr) + "\n")
        file.flush()
        os.fsync(file.fileno())
