"""Rows of inputs that are held by columns: mappings, data frames, Arrow tables, data sets of token ids.

Arrow and `datasets` objects are recognised by their attributes, so that neither package has to be imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from operator import methodcaller
from typing import Any

import numpy as np
import torch

from geep_triton.checks import shorten

Row = Mapping[str, Any]


def rows_of(inputs: Any, text_column: str) -> Any:
    """The rows of inputs that are held by columns; other inputs as they are.

    Args:
        inputs: a mapping of columns, a pandas DataFrame, a pyarrow Table or RecordBatch, a `datasets.Dataset`, or others.
        text_column: name of the column with texts.

    Raises:
        TypeError: a column has no order, or is a text.
        ValueError: columns have different lengths.
    """
    if isinstance(inputs, Mapping):
        return _rows_of_mapping(inputs, text_column)
    if hasattr(inputs, "iterrows"):  # a pandas DataFrame; iterating over it gives column names
        return inputs.to_dict("records")
    if hasattr(inputs, "schema") and hasattr(inputs, "to_pylist"):  # a pyarrow Table or RecordBatch
        return _rows_of_mapping(arrow_columns(inputs), text_column)
    return Columns.of_dataset(inputs).rows() if _holds_ids(inputs) else inputs


def _rows_of_mapping(columns: Mapping[str, Any], text_column: str) -> Iterator[Row]:
    if _is_one_sample(columns.get("input_ids")) or isinstance(columns.get(text_column), str) or not columns:
        return iter([columns])
    lengths = {name: _length_of_column(name, values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    if "input_ids" in columns:
        return Columns.of_mapping(columns).rows()
    # Iterating over an Arrow column gives its own scalar type.
    values = [map(methodcaller("as_py"), of) if hasattr(of, "to_pylist") else of for of in columns.values()]
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _length_of_column(name: str, values: Any) -> int:
    """Number of values in a column. TypeError for a text, which is one value, and for anything without order."""
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
    """Whether a column has the ids of one sample, as tokenizer("a text") returns them."""
    if isinstance(ids, (np.ndarray, torch.Tensor)):
        return ids.ndim == 1 and len(ids) > 0 and ids.dtype != object
    return isinstance(ids, (list, tuple)) and bool(ids) and isinstance(ids[0], int)


def _holds_ids(inputs: Any) -> bool:
    """Whether this is a `datasets.Dataset` of token ids without a custom transform."""
    if not (hasattr(inputs, "with_format") and hasattr(inputs, "__getitem__") and hasattr(inputs, "format")):
        return False
    return "input_ids" in inputs.format["columns"] and inputs.format["type"] != "custom"


class Columns:
    """Columns of N samples that are read on demand. A tensor of a million rows is neither copied nor turned into a list.

    Args:
        names: names of the columns.
        length: N.
        read: maps a slice of the samples to its columns.
    """

    def __init__(self, names: Sequence[str], length: int, read: Callable[[slice], Row]) -> None:
        self.names = tuple(names)
        self.length = length
        self.read = read

    @classmethod
    def of_mapping(cls, columns: Row) -> Columns:
        """Make columns of equal length, each a sequence, an array, a tensor or an Arrow column."""
        columns = {name: _sliceable(values) for name, values in columns.items()}
        return cls(tuple(columns), len(columns["input_ids"]), lambda rows: {name: of[rows] for name, of in columns.items()})

    @classmethod
    def of_dataset(cls, dataset: Any) -> Columns:
        """Make columns from a `datasets.Dataset`. They are read in Arrow, whatever its format, so that no row is decoded."""
        names = dataset.format["columns"]
        arrow = dataset.with_format("arrow", columns=names)
        return cls(names, len(dataset), lambda rows: arrow_columns(arrow[rows]))

    def rows(self) -> Iterator[TokenRow]:
        """The samples in order."""
        return (TokenRow(self, index) for index in range(self.length))


class TokenRow(Mapping):
    """One sample of `Columns`, which reads a column when a value is requested."""

    __slots__ = ("columns", "index")

    def __init__(self, columns: Columns, index: int) -> None:
        self.columns = columns
        self.index = index

    def __getitem__(self, name: str) -> Any:
        return self.columns.read(slice(self.index, self.index + 1))[name][0]

    def __contains__(self, name: object) -> bool:
        return name in self.columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns.names)

    def __len__(self) -> int:
        return len(self.columns.names)


def arrow_columns(arrow: Any) -> dict[str, Any]:
    """The columns of a pyarrow Table or RecordBatch."""
    return {name: arrow.column(name) for name in arrow.schema.names}


def _sliceable(values: Any) -> Any:
    if hasattr(values, "iloc"):  # a pandas Series, whose slices may go by its labels
        return values.to_numpy()
    try:
        _ = values[:0]
    except (TypeError, KeyError, RuntimeError):  # a deque, a dictionary's values, a nested tensor
        return list(values)
    return values
