"""One Arrow schema for rows of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa

from geep_triton.checks import shorten

WINDOW = 4096  # rows looked at together
FAILURES = (ValueError, TypeError, OverflowError)


def infer_schema(rows: Iterator[tuple[int, Mapping[str, Any]]]) -> pa.Schema:
    """The schema that all values fit: columns in the order of their first appearance, each of one type.

    Whole numbers beside others become floating-point numbers, null goes with everything, and objects have all keys of all rows.

    Args:
        rows: each with its line's number.

    Raises:
        ValueError: a value goes with none of the type before it. The error names its line and its column.
    """
    types: dict[str, pa.DataType] = {}
    while window := list(islice(rows, WINDOW)):
        for name in dict.fromkeys(name for _, row in window for name in row):
            values = [(number, row[name]) for number, row in window if name in row]
            types[name] = _merged(name, types.get(name, pa.null()), values)
    return pa.schema(list(types.items()))


def _merged(name: str, known: pa.DataType, values: Sequence[tuple[int, Any]]) -> pa.DataType:
    try:
        found = _both(known, pa.array([value for _, value in values]).type)
        for _, value in values:
            _refuse_flags(value, found)
        return found
    except FAILURES:
        for number, value in values:
            try:
                both = _both(known, pa.array([value]).type)
                _refuse_flags(value, both)
                known = both
            except FAILURES as error:
                raise ValueError(
                    f"line {number}: column {name!r} holds {shorten(value)}, which does not go with the type {known} of the "
                    f"lines before: {error}; write JSON lines instead, or leave the column out (--columns)"
                ) from None
        return known


def _refuse_flags(value: Any, of: pa.DataType) -> None:
    """Raise ValueError if a true or false stands where numbers stand: Arrow would make 1.0 or 0.0 of it."""
    if isinstance(value, bool) and pa.types.is_floating(of):
        raise ValueError(f"{json.dumps(value)} is no number")
    if isinstance(value, list) and pa.types.is_list(of):
        for each in value:
            _refuse_flags(each, of.value_type)
    if isinstance(value, Mapping) and pa.types.is_struct(of):
        for field in of:
            _refuse_flags(value.get(field.name), field.type)


def _both(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that values of both types fit."""
    schemas = [pa.schema([("", one)]), pa.schema([("", other)])]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
