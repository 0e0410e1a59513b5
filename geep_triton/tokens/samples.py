"""Reads any input of a user sample by sample: texts, pairs, or rows of token ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Protocol, TypeAlias

from geep_triton.checks import shorten
from geep_triton.tokens.columns import Row, rows_of

Sample = tuple[str, str | None]
COLUMNS = ("text", "text_pair")  # of rows: a text, and the other text of a pair


class Frame(Protocol):
    """A pandas DataFrame, as far as it is looked at."""

    def iterrows(self) -> Any:
        """Its rows, with their labels."""


class ArrowTable(Protocol):
    """A pyarrow Table or RecordBatch, as far as it is looked at."""

    schema: Any

    def to_pylist(self) -> Any:
        """Its rows."""


# What `iter_samples` takes: texts, pairs or rows, one after another; or columns.
Inputs: TypeAlias = Iterable[Sequence[str | None] | Mapping[str, Any]] | Mapping[str, Any] | Frame | ArrowTable


def check_columns(row: Row, required: Sequence[str]) -> None:
    """Check that a row has the required columns.

    Raises:
        ValueError: columns are missing (the error names them and the existing columns).
        TypeError: `row` is not a mapping.
    """
    if not isinstance(row, Mapping):
        raise TypeError(f"each row must be a mapping of columns, got {shorten(row)} of type {type(row).__name__}")
    missing = [name for name in required if name not in row]
    if missing:
        raise ValueError(f"missing column {', '.join(map(repr, missing))}; columns: {', '.join(map(repr, row)) or 'none'}")


def column_names(columns: str | Sequence[str | None]) -> tuple[str, str | None]:
    """The columns of a row's text and of the other text of a pair, from one name or two. None: rows hold no pairs.

    Raises:
        TypeError: `columns` is neither a name nor a pair of names.
    """
    names = (columns, None) if isinstance(columns, str) else columns
    if not isinstance(names, (tuple, list)) or [type(name) for name in names] not in ([str, str], [str, type(None)]):
        raise TypeError(f"columns must be the name of a column or a pair of names (text, other text), got {shorten(columns)}")
    return names[0], names[1]


def iter_samples(inputs: Any, columns: str | Sequence[str | None] = COLUMNS) -> Iterator[Sample | Row]:
    """One (text, pair or None) per sample, from any container of texts.

    Args:
        inputs: a text; a mapping of columns (lists, arrays, tensors, Arrow columns), a pandas DataFrame or a pyarrow Table or
            RecordBatch; or an iterable of texts, of (text, pair) tuples, or of rows (mappings, as a `datasets.Dataset` yields
            them). A row with `input_ids` is already tokenized and is passed through. Columns with `input_ids` become rows that
            are read one window at a time.
        columns: name of the column with texts, or two names, the second of the column with the other texts of pairs.

    Raises:
        TypeError: the inputs or an element are none of these, or are a bare tuple of two texts, which may be one pair or two
            texts; or `columns` are not names.
        ValueError: a row lacks the text column, or columns have different lengths.
    """
    text_column, pair_column = column_names(columns)
    check_no_bare_pair(inputs)
    for index, item in enumerate(_iterated([inputs] if isinstance(inputs, str) else rows_of(inputs, text_column))):
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
            yield item[text_column], None if pair_column is None else item.get(pair_column)
        else:
            raise TypeError(f"sample {index} must be a text, a (text, pair) tuple or a mapping, got {shorten(item)}")


def _iterated(inputs: Any) -> Iterator[Any]:
    """An iterator over the inputs, if they have an order. TypeError otherwise."""
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
    """Raise TypeError for a tuple of two texts (or of a text and None), which may be one pair or two texts."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], str) and isinstance(inputs[1], str | None):
        raise TypeError(
            f"inputs: a bare tuple of two texts may be one pair or two texts, got {shorten(inputs)}: "
            "pass [(text, pair)] for a pair, [text, text] for two texts"
        )


def check_rows(rows: Any) -> None:
    """Check that there are rows that can be counted and read repeatedly.

    Raises:
        TypeError: they cannot.
        ValueError: there are none.
    """
    if isinstance(rows, (str, bytes, Mapping, Set)) or not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise TypeError(
            f"rows must be a list of rows (mappings with text and label), got {shorten(rows)} of type {type(rows).__name__}"
        )
    if not len(rows):
        raise ValueError("rows: expected at least one, got none")
