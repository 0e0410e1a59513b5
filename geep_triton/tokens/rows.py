"""Samples that are token ids already: read a window at a time, checked by dtype and range instead of one by one.

Ids, segment ids and masks come as lists, NumPy arrays, PyTorch tensors (on any device) or Arrow lists. Those are told by what
they can do: Arrow and `datasets` are never imported.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress, groupby
from typing import Any, TypeAlias

import numpy as np
import torch

from geep_triton.checks import refuse_samples, shorten
from geep_triton.tokens.ragged import Tokens

Row = Mapping[str, Any]
Flat: TypeAlias = tuple[np.ndarray, np.ndarray]
NAMES = ("input_ids", "token_type_ids", "attention_mask")
INTEGERS = {getattr(torch, name) for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))}


class Columns:
    """Columns of N samples, read where they are wanted: a tensor of a million rows is neither copied whole nor made a list.

    Args:
        names: of the columns.
        length: N.
        read: the columns of a slice of the samples.
    """

    def __init__(self, names: Sequence[str], length: int, read: Callable[[slice], Row]) -> None:
        self.names = tuple(names)
        self.length = length
        self.read = read

    @classmethod
    def of_mapping(cls, columns: Row) -> Columns:
        """From columns of one length, each a sequence, an array, a tensor or an Arrow column."""
        columns = {name: _sliceable(values) for name, values in columns.items()}
        return cls(tuple(columns), len(columns["input_ids"]), lambda rows: {name: of[rows] for name, of in columns.items()})

    @classmethod
    def of_dataset(cls, dataset: Any) -> Columns:
        """From a `datasets.Dataset`, in Arrow whatever its format: so no row is decoded."""
        names = dataset.format["columns"]
        arrow = dataset.with_format("arrow", columns=names)
        return cls(names, len(dataset), lambda rows: arrow_columns(arrow[rows]))

    def rows(self) -> Iterator[TokenRow]:
        """The samples, in order."""
        return (TokenRow(self, index) for index in range(self.length))


class TokenRow(Mapping):
    """A sample of some columns, which are read once it is asked for a value."""

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
    except (TypeError, KeyError, RuntimeError):  # a deque, the values of a dictionary, a nested tensor
        return list(values)
    return values


def tokens_of(rows: Sequence[Row], first: int, max_length: int, type_vocab_size: int) -> Tokens:
    """The ids of a window of samples, those that a mask leaves.

    Args:
        rows: with "input_ids", and where they have them "token_type_ids" and "attention_mask".
        first: index of rows[0] in the user's input, for errors.
        max_length: most tokens a sample may have.
        type_vocab_size: segment ids must be below it.

    Raises:
        BadSample: naming every sample whose values are no integers, of another length than its ids, out of range, none or
            too many. Whether ids are in the vocabulary is not looked at.
    """
    runs = [_columns(list(run)) for _, run in groupby(enumerate(rows), _run_of)]
    parts = [_window(columns, max_length, type_vocab_size) for columns in runs]
    if any(part is None for part in parts):
        return _one_by_one(runs, first, max_length, type_vocab_size)
    return parts[0] if len(parts) == 1 else Tokens.concatenate(parts)


def too_long(length: int, max_length: int) -> str:
    """What is wrong with a sample of more than `max_length` tokens."""
    return f"has {length} tokens, more than the {max_length} allowed; truncation=True cuts such samples"


def _run_of(numbered: tuple[int, Row]) -> tuple:
    """Same for neighbours that can be read at once: of the same columns one after another, or with the same names."""
    position, row = numbered
    if isinstance(row, TokenRow):
        return row.columns, row.index - position
    return "token_type_ids" in row, "attention_mask" in row


def _columns(numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """The columns of a run, each whatever holds one row of integers for each sample."""
    row = numbered[0][1]
    if isinstance(row, TokenRow):
        found = row.columns.read(slice(row.index, row.index + len(numbered)))
        return {name: found[name] for name in NAMES if name in found}
    return {name: [row[name] for _, row in numbered] for name in NAMES if name in row}


def _window(columns: Mapping[str, Any], max_length: int, type_vocab_size: int) -> Tokens | None:
    """Tokens of a run; None where something is wrong with it, or it has to be read value by value."""
    flat = {name: _flat(values) for name, values in columns.items()}
    if any(column is None for column in flat.values()):
        return None
    ids, lengths = flat["input_ids"]
    if lengths.min() < 1 or any(not np.array_equal(lengths, other) for _, other in flat.values()):
        return None
    types, mask = (flat[name][0] if name in flat else None for name in ("token_type_ids", "attention_mask"))
    if types is not None and types.size and not 0 <= types.min() <= types.max() < type_vocab_size:
        return None
    if mask is not None and not (real := mask.astype(bool)).all():
        ids, types = ids[real], None if types is None else types[real]
        lengths = np.add.reduceat(real, _offsets(lengths)[:-1], dtype=np.int64)
    if lengths.min() < 1 or lengths.max() > max_length:
        return None
    # Copied, so that nobody's buffer changes under a window that is planned ahead.
    ids, offsets = torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(_offsets(lengths))
    return Tokens(ids, offsets, torch.from_numpy(types.astype(np.int64)) if types is not None and types.any() else None)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _flat(values: Any) -> Flat | None:
    """All integers of a column [T], and how many each sample has [N] int64; None where it is none of what is read at once."""
    if type(values) is np.ndarray and values.dtype == object:
        values = values.tolist()
    if isinstance(values, (list, tuple)):
        return _flat_rows(values)
    if hasattr(values, "to_pylist"):
        return _flat_arrow(values)
    values = _as_array(values)
    if values is None or values.ndim != 2:
        return None
    return values.reshape(-1), np.full(len(values), values.shape[1])


def _as_array(values: Any) -> np.ndarray | None:
    """A tensor's or array's integers on the host; None where they are no integers of 64 bits."""
    if type(values) is torch.Tensor and values.dtype in INTEGERS and values.layout is torch.strided and not values.is_nested:
        values = values.cpu().numpy()
    if type(values) is not np.ndarray or values.dtype.kind not in "iub":
        return None
    return None if values.dtype.itemsize == 8 and values.dtype.kind == "u" and (values >> 63).any() else values


def _flat_rows(rows: Sequence[Any]) -> Flat | None:
    """Of rows that are all lists, all arrays or all tensors of one dimension."""
    kinds = set(map(type, rows))
    try:
        if kinds <= {list, tuple}:
            values, lengths = _pack(rows), map(len, rows)
        elif kinds == {torch.Tensor}:
            values, lengths = _as_array(torch.cat(rows)), map(torch.Tensor.numel, rows)
        elif kinds == {np.ndarray}:
            values, lengths = _as_array(np.concatenate(rows)), map(len, rows)
        else:
            return None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # no integers, or of several shapes or devices
        return None
    return None if values is None or values.ndim != 1 else (values, np.fromiter(lengths, np.int64, len(rows)))


def _pack(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Integers from lists of them, by what takes integers only. TypeError for others, OverflowError beyond 64 bits."""
    try:
        return np.frombuffer(b"".join(map(bytes, rows)), np.uint8)  # masks and segment ids: a third of the other's time
    except ValueError:  # more than a byte
        return np.frombuffer(b"".join([array("q", row) for row in rows]), np.int64)


def _flat_arrow(column: Any) -> Flat | None:
    """Of an Arrow array of lists, or several in chunks."""
    values, lengths = [], []
    for chunk in getattr(column, "chunks", [column]):
        if chunk.null_count or not hasattr(chunk, "value_lengths"):
            return None
        found = _as_array(chunk.flatten().to_numpy(zero_copy_only=False))  # floats where one is null
        if found is None:
            return None
        values.append(found)
        lengths.append(chunk.value_lengths().to_numpy(zero_copy_only=False))
    return np.concatenate(values), np.concatenate(lengths).astype(np.int64)


def _one_by_one(runs: Sequence[Mapping[str, Any]], first: int, max_length: int, type_vocab_size: int) -> Tokens:
    """As `tokens_of`, in Python: slow, and tells which samples are wrong and why."""
    ids, type_ids, errors = [], [], {}
    for columns in runs:
        columns = {name: _lists(values) for name, values in columns.items()}
        for row in zip(*columns.values(), strict=True):
            row = dict(zip(columns, row, strict=True))
            if reason := _row_error(row, type_vocab_size):
                errors[len(ids)] = reason
                row = dict.fromkeys(row, ())
            row = {name: list(map(operator.index, values)) for name, values in row.items()}
            types, mask = row.get("token_type_ids", ()), row.get("attention_mask")
            ids.append(row["input_ids"] if mask is None else list(compress(row["input_ids"], mask)))
            type_ids.append(types if mask is None else list(compress(types, mask)))
    refuse_samples(errors, first)
    wrong = {index: "has no tokens" for index, row in enumerate(ids) if not row}
    wrong |= {index: too_long(len(row), max_length) for index, row in enumerate(ids) if len(row) > max_length}
    refuse_samples(wrong, first)
    return tokens_from_lists(ids, type_ids)


def tokens_from_lists(ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], cut: Sequence[int] = ()) -> Tokens:
    """From a list of ids and one of segment ids for each sample; a sample without segment ids is all segment 0.

    Args:
        ids, type_ids: of each sample.
        cut: which samples were cut.
    """
    has_types = any(map(any, type_ids))
    filled = [types or [0] * len(row) for row, types in zip(ids, type_ids, strict=True)] if has_types else None
    tokens = Tokens.from_lists(ids, filled)
    if not cut:
        return tokens
    flags = torch.zeros(len(ids), dtype=torch.bool)
    flags[list(cut)] = True
    return replace(tokens, cut=flags)


def _lists(values: Any) -> list[Any]:
    """Each row of a column as `to_list` gives it."""
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    return [to_list(row) for row in values]


def to_list(values: Any) -> Any:
    """The values of a tensor, an array, an Arrow list or any other iterable; what holds none as it is."""
    for name in ("tolist", "as_py"):
        if hasattr(values, name):
            return getattr(values, name)()
    return list(values) if hasattr(values, "__iter__") else values


def _row_error(columns: Mapping[str, Any], type_vocab_size: int) -> str | None:
    ids = columns["input_ids"]
    for name, values in columns.items():
        if not isinstance(values, list):
            return f"has {name} that are no list of integers: {shorten(values)}"
        if len(values) != len(ids):
            return f"has {len(values)} {name} for {len(ids)} input_ids"
        if not all(map(_is_integer, values)):
            return f"has {name} that are no integers: {shorten(values)}"
    types = columns.get("token_type_ids")
    if types and not 0 <= min(types) <= max(types) < type_vocab_size:
        return f"has token_type_ids outside 0..{type_vocab_size - 1}: {shorten(list(map(operator.index, types)))}"
    if ids and not -(2**63) <= min(ids) <= max(ids) < 2**63:
        return f"has input_ids beyond 64 bits: {shorten(list(map(operator.index, ids)))}"
    return None


def _is_integer(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
