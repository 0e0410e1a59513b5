"""Rows on their way from one file to another: as Arrow has them, or as plain Python rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID

import pyarrow as pa

from geep_triton.checks import shorten


class Chunk(Protocol):
    """Some rows of a file that are read and written together."""

    def __len__(self) -> int: ...

    def select(self, keep: Sequence[int], columns: Sequence[str] | None) -> Chunk:
        """The rows with these numbers in this chunk, with these columns; None: with all."""

    def beside(self, answers: pa.Table) -> Chunk:
        """The rows with answers beside them, one for each. ValueError if a row has a column of such a name."""

    def rows(self) -> list[dict[str, Any]]:
        """The rows as Python has them."""

    def table(self, schema: pa.Schema) -> pa.Table:
        """The rows in Arrow. ValueError if a value does not fit the schema; it names the row and the column."""


class ArrowChunk:
    """Rows of an Arrow table, whose types are kept."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.num_rows

    def select(self, keep: Sequence[int], columns: Sequence[str] | None) -> ArrowChunk:
        """See `Chunk.select`."""
        # First the rows: a table without columns has no rows that could be taken.
        table = self._table if len(keep) == len(self) else self._table.take(pa.array(keep, pa.int64()))
        return ArrowChunk(table if columns is None else table.select(list(columns)))

    def beside(self, answers: pa.Table) -> ArrowChunk:
        """See `Chunk.beside`."""
        # A table without columns has no rows to which one could be appended.
        schema = pa.schema([*self._table.schema, *answers.schema], metadata=self._table.schema.metadata)
        return ArrowChunk(pa.Table.from_arrays([*self._table.columns, *answers.columns], schema=schema))

    def rows(self) -> list[dict[str, Any]]:
        """See `Chunk.rows`."""
        return self._table.to_pylist()

    def table(self, schema: pa.Schema) -> pa.Table:
        """The table as it is."""
        return self._table


class PlainChunk:
    """Rows of a text file.

    Args:
        rows: of them, each with the columns that it has. None stands for a row that cannot be read.
        numbers: of the rows in their file, from 0.
        word: what a row's number is called, "row" or "line".
    """

    def __init__(self, rows: Sequence[Mapping[str, Any] | None], numbers: Sequence[int], word: str) -> None:
        self._rows, self._numbers, self._word = rows, numbers, word

    def __len__(self) -> int:
        return len(self._rows)

    def select(self, keep: Sequence[int], columns: Sequence[str] | None) -> PlainChunk:
        """See `Chunk.select`."""
        rows = [self._rows[index] or {} for index in keep]
        if columns is not None:
            rows = [{name: row[name] for name in columns if name in row} for row in rows]
        return PlainChunk(rows, [self._numbers[index] for index in keep], self._word)

    def beside(self, answers: pa.Table) -> PlainChunk:
        """See `Chunk.beside`."""
        found = []
        for number, row, answer in zip(self._numbers, self._rows, answers.to_pylist(), strict=True):
            both = {**(row or {}), **answer}
            if len(both) < len(row or {}) + len(answer):
                taken = next(name for name in answer if name in (row or {}))
                raise ValueError(f"{self._word} {number + 1} has a column {taken!r}, and so have the answers: use --prefix")
            found.append(both)
        return PlainChunk(found, self._numbers, self._word)

    def rows(self) -> list[dict[str, Any]]:
        """See `Chunk.rows`."""
        return [dict(row) for row in self._rows if row is not None]

    def table(self, schema: pa.Schema) -> pa.Table:
        """See `Chunk.table`."""
        return pa.table([self._column(field) for field in schema], schema=schema)

    def _column(self, field: pa.Field) -> pa.Array:
        values = [None if row is None else row.get(field.name) for row in self._rows]
        try:
            return pa.array(values, field.type)
        except (ValueError, TypeError, OverflowError):
            for number, value in zip(self._numbers, values, strict=True):
                try:
                    pa.array([value], field.type)
                except (ValueError, TypeError, OverflowError) as error:
                    raise ValueError(
                        f"{self._word} {number + 1}: column {field.name!r} holds {shorten(value)}, which does not fit its "
                        f"type {field.type}: {error}"
                    ) from None
            raise


def json_text(value: Any) -> str:
    """A value in JSON. Dates and times are in ISO 8601, decimals as text. TypeError for bytes, which JSON does not have.

    Nor does it have infinities, or what is not a number (NaN): these become null.
    """
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, default=_plain, allow_nan=False)


def csv_text(value: Any) -> str:
    """A field of a CSV file: a text as it is, nothing for null, any other value in JSON without quotes around it."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value) if isinstance(value, float) else json_text(value)
    return text[1:-1] if isinstance(value, (date, time, timedelta, Decimal, UUID)) else text


def _finite(value: Any) -> Any:
    """A value with null for each number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(of) for name, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(of) for of in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> str:
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (timedelta, Decimal, UUID)):
        return str(value)
    raise TypeError(f"{shorten(value)} of type {type(value).__name__} cannot be written as text")
