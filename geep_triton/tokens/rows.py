"""Samples that are already token ids. They are read a window at a time and checked as arrays, not one by one.

Ids, segment ids and masks may be lists, NumPy arrays, PyTorch tensors (on any device) or Arrow lists. Arrow and `datasets`
objects are recognised by their attributes, so that neither package has to be imported.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress, groupby
from typing import Any, TypeAlias

import numpy as np
import torch

from geep_triton.checks import refuse_samples, shorten
from geep_triton.tokens.columns import Row, TokenRow
from geep_triton.tokens.ragged import Tokens

Flat: TypeAlias = tuple[np.ndarray, np.ndarray]
NAMES = ("input_ids", "token_type_ids", "attention_mask")
INTEGERS = {getattr(torch, name) for name in ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))}


def tokens_of(rows: Sequence[Row], first: int, max_length: int, type_vocab_size: int) -> Tokens:
    """The ids of a window of samples, without the tokens that a mask excludes.

    Args:
        rows: rows with "input_ids" and optionally "token_type_ids" and "attention_mask".
        first: index of rows[0] in the user's input, for errors.
        max_length: maximum number of tokens of a sample.
        type_vocab_size: segment ids must be below it.

    Raises:
        BadSample: values are not integers or out of range, their number differs from that of the ids, or a sample has no or too
            many tokens. The error names all such samples. Ids are not compared with the vocabulary here.
    """
    runs = [_columns(list(run)) for _, run in groupby(enumerate(rows), _run_key)]
    parts = [_window(columns, max_length, type_vocab_size) for columns in runs]
    read = [part for part in parts if part is not None]
    if len(read) < len(parts):
        return _one_by_one(runs, first, max_length, type_vocab_size)
    return read[0] if len(read) == 1 else Tokens.concatenate(read)


def too_long(length: int, max_length: int) -> str:
    """The error text for a sample of more than `max_length` tokens."""
    return f"has {length} tokens, more than the {max_length} allowed; truncation=True cuts such samples"


def _run_key(numbered: tuple[int, Row]) -> tuple:
    """A key that is equal for neighbours that can be read at once: consecutive rows of the same columns, or rows with
    the same names.
    """
    position, row = numbered
    if isinstance(row, TokenRow):
        return row.columns, row.index - position
    return "token_type_ids" in row, "attention_mask" in row


def _columns(numbered: Sequence[tuple[int, Row]]) -> dict[str, Any]:
    """The columns of a run, each with one row of integers per sample in any container."""
    row = numbered[0][1]
    if isinstance(row, TokenRow):
        found = row.columns.read(slice(row.index, row.index + len(numbered)))
        return {name: found[name] for name in NAMES if name in found}
    return {name: [row[name] for _, row in numbered] for name in NAMES if name in row}


def _window(columns: Mapping[str, Any], max_length: int, type_vocab_size: int) -> Tokens | None:
    """Tokens of a run. None if a value is wrong or the values have to be read one by one."""
    flat: dict[str, Flat] = {}
    for name, values in columns.items():
        if (column := _flat(values)) is None:
            return None
        flat[name] = column
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
    # This copies the ids, because the owner of the buffer may change it while the window waits.
    type_ids = torch.from_numpy(types.astype(np.int64)) if types is not None and types.any() else None
    return Tokens(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(_offsets(lengths)), type_ids)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def _flat(values: Any) -> Flat | None:
    """All integers of a column [T] and their number per sample [N] int64. None if the column cannot be read at once."""
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
    """The integers of a tensor or an array on the host. None if they are not integers of at most 64 bits."""
    if type(values) is torch.Tensor and values.dtype in INTEGERS and values.layout is torch.strided and not values.is_nested:
        values = values.cpu().numpy()
    if type(values) is not np.ndarray or values.dtype.kind not in "iub":
        return None
    return None if values.dtype.itemsize == 8 and values.dtype.kind == "u" and (values >> 63).any() else values


def _flat_rows(rows: Sequence[Any]) -> Flat | None:
    """`_flat` for rows that are all lists, all arrays or all tensors of one dimension."""
    kinds = set(map(type, rows))
    values: np.ndarray | None
    lengths: Iterable[int]
    try:
        if kinds <= {list, tuple}:
            values, lengths = _pack(rows), map(len, rows)
        elif kinds == {torch.Tensor}:
            values, lengths = _as_array(torch.cat(list(rows))), map(torch.Tensor.numel, rows)
        elif kinds == {np.ndarray}:
            values, lengths = _as_array(np.concatenate(rows)), map(len, rows)
        else:
            return None
    except (TypeError, ValueError, OverflowError, RuntimeError):  # not integers, or of several shapes or devices
        return None
    return None if values is None or values.ndim != 1 else (values, np.fromiter(lengths, np.int64, len(rows)))


def _pack(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    """Integers from lists of integers. TypeError for other values, OverflowError beyond 64 bits."""
    try:
        return np.frombuffer(b"".join(map(bytes, rows)), np.uint8)  # for masks and segment ids this takes a third of the time
    except ValueError:  # a value exceeds a byte
        return np.frombuffer(b"".join([array("q", row) for row in rows]), np.int64)


def _flat_arrow(column: Any) -> Flat | None:
    """`_flat` for an Arrow array of lists, possibly in chunks."""
    values, lengths = [], []
    for chunk in getattr(column, "chunks", [column]):
        if chunk.null_count or not hasattr(chunk, "value_lengths"):
            return None
        found = _as_array(chunk.flatten().to_numpy(zero_copy_only=False))  # these are floats if one is null
        if found is None:
            return None
        values.append(found)
        lengths.append(chunk.value_lengths().to_numpy(zero_copy_only=False))
    return np.concatenate(values), np.concatenate(lengths).astype(np.int64)


def _one_by_one(runs: Sequence[Mapping[str, Any]], first: int, max_length: int, type_vocab_size: int) -> Tokens:
    """As `tokens_of`, in Python. It is slow, but it finds out which samples are wrong and why."""
    ids: list[list[int]] = []
    type_ids: list[Sequence[int]] = []
    errors: dict[int, str] = {}
    for run in runs:
        columns = {name: _lists(values) for name, values in run.items()}
        for found in zip(*columns.values(), strict=True):
            row: dict[str, Any] = dict(zip(columns, found, strict=True))
            if reason := _row_error(row, type_vocab_size):
                errors[len(ids)] = reason
                row = dict.fromkeys(row, ())
            row = {name: list(map(operator.index, values)) for name, values in row.items()}
            types, mask = row.get("token_type_ids", ()), row.get("attention_mask")
            ids.append(row["input_ids"] if mask is None else list(compress(row["input_ids"], mask)))
            type_ids.append(types if mask is None else list(compress(types, mask)))
    refuse_samples(errors, first)
    wrong = {index: "has no tokens" for index, own in enumerate(ids) if not own}
    wrong |= {index: too_long(len(own), max_length) for index, own in enumerate(ids) if len(own) > max_length}
    refuse_samples(wrong, first)
    return tokens_from_lists(ids, type_ids)


def tokens_from_lists(ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], cut: Sequence[int] = ()) -> Tokens:
    """Make tokens from one list of ids and one of segment ids per sample. An empty list of segment ids means segment 0.

    Args:
        ids: ids of each sample.
        type_ids: segment ids of each sample.
        cut: indices of the samples that were cut.
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
    """Each row of a column, converted by `to_list`."""
    if hasattr(values, "to_pylist"):
        values = values.to_pylist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    return [to_list(row) for row in values]


def to_list(values: Any) -> Any:
    """The values of a tensor, an array, an Arrow list or any other iterable. Any other value is returned as it is."""
    for name in ("tolist", "as_py"):
        if hasattr(values, name):
            return getattr(values, name)()
    return list(values) if hasattr(values, "__iter__") else values


def _row_error(columns: Mapping[str, Any], type_vocab_size: int) -> str | None:
    ids = columns["input_ids"]
    for name, values in columns.items():
        if not isinstance(values, list):
            return f"has {name} that are not a list of integers: {shorten(values)}"
        if len(values) != len(ids):
            return f"has {len(values)} {name} for {len(ids)} input_ids"
        if not all(map(_is_integer, values)):
            return f"has {name} that are not integers: {shorten(values)}"
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
