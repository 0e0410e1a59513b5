"""Whatever a user has, sample by sample: texts, pairs, or rows of token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from operator import methodcaller
from typing import Any

import numpy as np
import torch

from geep_triton.checks import shorten
from geep_triton.tokens.rows import Columns, Row, arrow_columns

Sample = tuple[str, str | None]


def check_columns(row: Row, required: Sequence[str]) -> None:
    """Raise ValueError naming the columns that `row` lacks and those it has, TypeError for what is no row."""
    if not isinstance(row, Mapping):
        raise TypeError(f"each row must be a mapping of columns, got {shorten(row)} of type {type(row).__name__}")
    missing = [name for name in required if name not in row]
    if missing:
        raise ValueError(f"missing column {', '.join(map(repr, missing))}; columns: {', '.join(map(repr, row)) or 'none'}")


def iter_samples(inputs: Any, text_column: str = "text", pair_column: str = "text_pair") -> Iterator[Sample | Row]:
    """One (text, pair or None) per sample from whatever holds texts.

    Args:
        inputs: a text; a mapping of columns (lists, arrays, tensors, Arrow columns), a pandas DataFrame or a pyarrow Table
            or RecordBatch; or an iterable of texts, of (text, pair) tuples, or of rows (mappings, as a `datasets.Dataset`
            yields). A row with `input_ids` passes through as it is: it is tokenized already. Columns of `input_ids` become
            rows that are read a window at a time.

    Raises:
        TypeError: inputs or an element are none of these, or a bare tuple of two texts, which may be one pair or two texts.
        ValueError: a row lacks the text column, or columns are not of one length.
    """
    check_no_bare_pair(inputs)
    if isinstance(inputs, str):
        inputs = [inputs]
    elif isinstance(inputs, Mapping):
        inputs = _rows_of_columns(inputs, text_column)
    elif hasattr(inputs, "iterrows"):  # a pandas DataFrame, whose own iterator gives column names
        inputs = inputs.to_dict("records")
    elif hasattr(inputs, "schema") and hasattr(inputs, "to_pylist"):  # a pyarrow Table or RecordBatch
        inputs = _rows_of_columns(arrow_columns(inputs), text_column)
    elif _holds_ids(inputs):
        inputs = Columns.of_dataset(inputs).rows()
    for index, item in enumerate(_iterated(inputs)):
        if isinstance(item, str):
            yield item, None
        elif isinstance(item, (tuple, list)) and len(item) == 2:
            yield item[0], item[1]
        elif isinstance(item, Mapping):
            if "input_ids" in item:
                yield item
                continue
            try:
                check_columns(item, (text_column,))
            except ValueError as error:
                raise ValueError(f"sample {index}: {error}") from None
            yield item[text_column], item.get(pair_column)
        else:
            raise TypeError(f"sample {index} must be a text, a (text, pair) tuple or a mapping, got {shorten(item)}")


def _iterated(inputs: Any) -> Iterator[Any]:
    """The inputs, if they come in an order that answers can keep. TypeError otherwise."""
    try:
        if isinstance(inputs, (bytes, bytearray, Set)):
            raise TypeError
        return iter(inputs)
    except TypeError:
        raise TypeError(
            "inputs must be a text, a list or another ordered iterable of texts, of (text, pair) tuples or of rows, or a "
            f"mapping of columns, got {shorten(inputs)} of type {type(inputs).__name__}"
        ) from None


def check_no_bare_pair(inputs: Any) -> None:
    """Raise TypeError for a tuple of a text and another one or None, which does not say whether it is one pair or two texts."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], str) and isinstance(inputs[1], str | None):
        raise TypeError(
            f"inputs: a bare tuple of two texts may be one pair or two texts, got {shorten(inputs)}: "
            "pass [(text, pair)] for a pair, [text, text] for two texts"
        )


def check_rows(rows: Any) -> None:
    """Raise TypeError unless these are rows that can be counted and read more than once, ValueError where there are none."""
    if isinstance(rows, (str, bytes, Mapping, Set)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TypeError(
            f"rows must be a list of rows (mappings with text and label), got {shorten(rows)} of type {type(rows).__name__}"
        )
    if not len(rows):
        raise ValueError("rows: expected at least one, got none")


def _rows_of_columns(columns: Mapping[str, Any], text_column: str) -> Iterator[Row]:
    if _is_one_sample(columns.get("input_ids")) or isinstance(columns.get(text_column), str) or not columns:
        return iter([columns])
    lengths = {name: _length_of_column(name, values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    if "input_ids" in columns:
        return Columns.of_mapping(columns).rows()
    # An Arrow column iterates over its own scalars.
    values = [map(methodcaller("as_py"), of) if hasattr(of, "to_pylist") else of for of in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _length_of_column(name: str, values: Any) -> int:
    """How many values a column has. TypeError for a text, which is a value and no column of letters, and what has no order."""
    try:
        if isinstance(values, (str, bytes, bytearray, Mapping, Set)):
            raise TypeError
        return len(values)
    except TypeError:
        raise TypeError(
            f"column {name!r} must be a list or an array with a value for each sample, got {shorten(values)} of type "
            f"{type(values).__name__}; pass a single row as [row]"
        ) from None


def _is_one_sample(ids: Any) -> bool:
    """Whether a column holds the ids of one sample, as tokenizer("a text") gives them."""
    if isinstance(ids, (np.ndarray, torch.Tensor)):
        return ids.ndim == 1 and len(ids) > 0 and ids.dtype != object
    return isinstance(ids, (list, tuple)) and bool(ids) and isinstance(ids[0], int)


def _holds_ids(inputs: Any) -> bool:
    """Whether this is a `datasets.Dataset` of token ids, and no code of the user's makes its rows."""
    if not (hasattr(inputs, "with_format") and hasattr(inputs, "__getitem__") and hasattr(inputs, "format")):
        return False
    return "input_ids" in inputs.format["columns"] and inputs.format["type"] != "custom"
