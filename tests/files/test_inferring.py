"""One schema for rows of JSON: whatever fits it comes back as it was."""

from __future__ import annotations

import math
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.files.chunks import PlainChunk
from geep_triton.files.inferring import infer_schema

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text("ab", max_size=2), inner, max_size=2))
)
ROWS = st.lists(st.dictionaries(st.sampled_from(["x", "y", "a.b", ""]), VALUES, max_size=3), max_size=6)


def same(value: object, found: object) -> bool:
    """Whether a value came back: what an object lacks is null there, and whole numbers may have become floats."""
    if isinstance(value, dict):
        return (
            isinstance(found, dict)
            and all(same(value.get(name), found[name]) for name in found)
            and value.keys() <= found.keys()
        )
    if isinstance(value, list):
        return isinstance(found, list) and len(value) == len(found) and all(map(same, value, found))
    if isinstance(value, float) and isinstance(found, float):
        return value == found or math.isnan(value)
    return value == found and (isinstance(value, bool) == isinstance(found, bool))


@pytest.mark.parametrize("values", [[0.0, False], [True, 1.5], [[0.0, False]], [{"a": 1.5}, {"a": True}], [1.0, None, False]])
def test_true_and_false_are_no_numbers(values):
    with pytest.raises(ValueError, match=r"line [1-3]: column 'x' holds .* does not go with the type"):
        infer_schema(enumerate(({"x": value} for value in values), start=1))


@settings(max_examples=120)
@given(ROWS)
def test_rows_come_back_or_are_refused(rows):
    refused, schema, found = "", pa.schema([]), []
    try:
        schema = infer_schema(enumerate(iter(rows), start=1))
        found = PlainChunk(rows, range(len(rows)), "line").table(schema).to_pylist()
    except ValueError as error:
        refused = str(error)
    if refused:
        assert re.search("line [1-6].*column ", refused)
        return
    if not schema.names:
        return  # in a run there are columns of answers
    assert schema.names == list(dict.fromkeys(name for row in rows for name in row))
    assert all(same(row, again) for row, again in zip(rows, found, strict=True)), (rows, found)


def test_windows_do_not_matter():
    rows = [(number, {"x": None if number < 5000 else {"a": number / 2}, "y": [number]}) for number in range(10_000)]
    assert infer_schema(iter(rows)) == pa.schema([("x", pa.struct([("a", pa.float64())])), ("y", pa.list_(pa.int64()))])
