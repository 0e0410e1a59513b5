"""Text rows: reading files, and turning text into token ids. Columns are those of `datasets`: text, text_pair, label."""

from __future__ import annotations

import csv
import ctypes
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import BadSample as BadSample  # what `Encoder` raises
from geep_triton.checks import refuse_samples, shorten
from geep_triton.outputs import Tokens
from geep_triton.token_rows import Columns, Row, arrow_columns, tokens_from_lists, tokens_of, too_long
from geep_triton.tokenizing import Encoded, text_tokenizer

Sample = tuple[str, str | None]
ONE_OBJECT = "expected a JSON object in each line (JSON lines)"
LONGEST_FIELD = ctypes.c_ulong(-1).value // 2  # the largest C long, of which csv makes its limit


class BadLine(ValueError):
    """A line of a file that is not a row; carries the file's name and the line's number (from 1)."""

    def __init__(self, path: str | os.PathLike, number: int, reason: str) -> None:
        super().__init__(f"{path}, line {number}: {reason}")
        self.number = number
        self.reason = reason


def read_json_lines(
    path: str | os.PathLike, required: Sequence[str] = (), on_bad_line: Callable[[BadLine], Row] | None = None
) -> Iterator[Row]:
    """Stream the rows of a JSON lines file; blank lines are bad lines, except after the last row.

    Args:
        path: UTF-8, one JSON object a line.
        required: columns that every row must have.
        on_bad_line: makes the row that stands for a bad line; None: raise it.

    Raises:
        BadLine: naming file, line number and reason.
    """
    blank: list[int] = []
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                blank.append(number)
                continue
            for earlier in blank:
                yield _refuse(BadLine(path, earlier, "blank line"), on_bad_line)
            blank.clear()
            try:
                row = _json_row(raw.decode("utf-8-sig" if number == 1 else "utf-8"), decoder)
                check_columns(row, required)
            except ValueError as error:
                row = _refuse(BadLine(path, number, str(error)), on_bad_line)
            yield row


def _json_row(line: str, decoder: json.JSONDecoder) -> Row:
    try:
        row = decoder.decode(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error}; {ONE_OBJECT}, got {shorten(line.strip())}") from None
    except RecursionError:
        raise ValueError(f"JSON that is nested too deeply; {ONE_OBJECT}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{ONE_OBJECT}, got {shorten(row)}")
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError where it has a name twice: of such values all but one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse_twice([name for name, _ in pairs])
    return found


def _refuse_twice(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"column {', '.join(map(shorten, twice))} more than once; columns: {shorten(names)}")


def _refuse(error: BadLine, on_bad_line: Callable[[BadLine], Row] | None) -> Row:
    if on_bad_line is None:
        raise error
    return on_bad_line(error)


def read_csv(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[Row]:
    """Stream the rows of a CSV file (UTF-8, commas, first line names the columns); blank lines between rows are passed over.

    Fields may be of any length, for which the limit that the module csv has for the whole process is lifted.

    Raises:
        BadLine: naming file, the line that a bad row begins in, and reason.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        _refuse_no_header(path, file.readline())
        file.seek(0)
        # Strict: else a quote that is never closed makes one field of all rows that follow.
        reader = csv.reader(_checked(file), strict=True)
        names: list[str] | None = None
        first = 1
        try:
            for values in reader:
                if names is None:
                    names = _header(values, required)
                elif values:
                    if len(values) != len(names):
                        raise ValueError(
                            f"expected {len(names)} fields as in the header, got {len(values)}{_span(first, reader)}"
                        )
                    yield dict(zip(names, values, strict=True))
                first = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise BadLine(path, reader.line_num + 1, str(error)) from None
        except (ValueError, csv.Error) as error:
            hint = _span(first, reader) if isinstance(error, csv.Error) else ""
            raise BadLine(path, first, f"{error}{hint}") from None


def _refuse_no_header(path: str | os.PathLike, line: str) -> None:
    """Raise BadLine where the first line of a file that is not empty names no columns."""
    if line and (not line.strip() or line.lstrip().startswith(("{", "["))):
        got = "what looks like JSON (.jsonl)" if line.strip() else "a blank line"
        raise BadLine(path, 1, f"expected names of columns with commas between them, got {got}: {shorten(line.strip())}")


def _span(first: int, reader: Any) -> str:
    last = reader.line_num
    return "" if last <= first else f" (the row goes on to line {last}: is a quote not closed, or not doubled?)"


def _checked(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file that was opened to escape what is no UTF-8, each checked when its turn comes."""
    for line in lines:
        if not line.isascii():
            line.encode("utf-8", "surrogateescape").decode("utf-8")
        yield line


def _header(names: list[str], required: Sequence[str]) -> list[str]:
    """The columns of a CSV file. ValueError where its first line names one twice, or lacks a required one."""
    _refuse_twice(names)
    try:
        check_columns(dict.fromkeys(names), required)
    except ValueError as error:
        raise ValueError(f"{error}; expected names of columns with commas between them") from None
    return names


READERS: dict[str, Callable[..., Iterable[Row]]] = {".jsonl": read_json_lines, ".json": read_json_lines, ".csv": read_csv}


def read_rows(source: str | os.PathLike, split: str = "train", required: Sequence[str] = ("text",)) -> list[Row]:
    """All rows of a JSON lines file (.jsonl, .json), a CSV file (.csv), or a split of a data set on the hub.

    Args:
        source: path of a file, or anything `datasets.load_dataset` takes (needs the package datasets).
        split: of a hub data set; files have none.
        required: columns that every row must have.

    Raises:
        ValueError: no such file, no rows, a bad line, or a missing column.
        ImportError: a hub id where the package datasets is not installed.
    """
    path = Path(source)
    if not str(source).strip():
        raise ValueError(f"source must be a file or the id of a data set, got {source!r}")
    reader = READERS.get(path.suffix.lower())
    if reader is None and not path.is_file():
        return _read_hub(str(source), split, required)
    if reader is None:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; known: {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    rows = list(reader(path, required))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _read_hub(source: str, split: str, required: Sequence[str]) -> list[Row]:
    try:
        from datasets import ClassLabel, load_dataset
    except ImportError as error:
        raise ImportError(
            f"{source!r} is no .jsonl, .json or .csv file; to read it from the hub, pip install datasets"
        ) from error
    dataset = load_dataset(source, split=split)
    check_columns(dict.fromkeys(dataset.column_names), required)
    label = dataset.features.get("label")
    rows = [dict(row) for row in dataset]
    if isinstance(label, ClassLabel):
        for row in rows:
            row["label"] = label.int2str(row["label"])
    if not rows:
        raise ValueError(f"{source}, split {split!r}, has no rows")
    return rows


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


class Encoder:
    """Turns samples into `Tokens` with a tokenizer; truncates only when asked.

    It keeps no state and leaves the tokenizer as it is, so any number of threads and encoders may share either. Once a
    tokenizer has other tokens, or another truncation side, the encoders made of it before refuse to go on.

    Args:
        tokenizer: a Hugging Face tokenizer; None where all samples are token ids.
        max_length: most tokens a sample may have, special tokens included.
        truncation: cut longer samples (longest of a pair first, on the tokenizer's truncation side) instead of raising;
            `Tokens.cut` says which.
        vocab_size: ids must be below it; None: not checked.
        type_vocab_size: segment ids must be below it.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        max_length: int,
        truncation: bool = False,
        vocab_size: int | None = None,
        type_vocab_size: int = 2,
    ) -> None:
        self.max_length = max_length
        self.truncation = truncation
        self.vocab_size = vocab_size
        self.type_vocab_size = type_vocab_size
        self._encode = None if tokenizer is None else text_tokenizer(tokenizer)
        self._pad_id = None if tokenizer is None else _padding_only(tokenizer)
        self._knows_words = tokenizer is not None and len(tokenizer) > len(set(tokenizer.all_special_ids))

    def __call__(self, samples: Sequence[Sample | Row], first: int = 0) -> Tokens:
        """Encode a window of samples; texts and pairs may be mixed.

        Args:
            samples: texts with or without a pair, or rows of input_ids.
            first: index of samples[0] in the user's input, for errors.

        Raises:
            BadSample: a text that is empty, no string or no valid Unicode; a sample longer than max_length; ids or segment
                ids that are no integers, of another length or out of range.
            ValueError: a mix of texts and tokenized rows; a max_length that special tokens alone exceed.
        """
        tokenized = [isinstance(sample, Mapping) for sample in samples]
        if any(tokenized) and not all(tokenized):
            raise ValueError(f"samples {first}..{first + len(samples) - 1} mix texts and rows of input_ids")
        tokens = (
            tokens_of(samples, first, self.max_length, self.type_vocab_size) if tokenized[0] else self._texts(samples, first)
        )
        if self.vocab_size is not None:
            self._check_ids(tokens, first)
        return tokens

    def padding_of(self, samples: Sequence[Sample | Row], tokens: Tokens, first: int = 0) -> str | None:
        """What to warn of where rows of input_ids are padded and no attention mask tells that; None: of nothing.

        Args:
            samples: a window of them.
            tokens: what they were encoded to.
            first: index of samples[0] in the user's input.
        """
        if self._pad_id is None or not isinstance(samples[0], Mapping):
            return None
        padded = (tokens.ids[tokens.offsets[1:] - 1] == self._pad_id) | (tokens.ids[tokens.offsets[:-1]] == self._pad_id)
        unmasked = [index for index in padded.nonzero()[:, 0].tolist() if "attention_mask" not in samples[index]]
        if not unmasked:
            return None
        return (
            f"sample {first + unmasked[0]} has input_ids that begin or end with the padding token ({self._pad_id}), and no "
            "attention_mask: its padding is read as text, which changes answers; pass the column attention_mask, or ids "
            "without padding"
        )

    def _texts(self, samples: Sequence[Sample], first: int) -> Tokens:
        if not self._knows_words:  # transformers makes a tokenizer of special tokens where there is no vocabulary
            raise ValueError("the tokenizer knows no words, only special tokens: the file of its vocabulary is missing")
        refuse_samples({index: reason for index, sample in enumerate(samples) if (reason := _text_error(*sample))}, first)
        encoded = self._tokenize(samples)
        special = self._encode.special
        empty = {
            index: "has a text without any token"
            for index, ((_, pair), row) in enumerate(zip(samples, encoded, strict=True))
            if row.length <= special[pair is not None]
        }
        refuse_samples(empty, first)
        longer = [index for index, row in enumerate(encoded) if row.length > self.max_length]
        if longer and not self.truncation:
            refuse_samples({index: too_long(encoded[index].length, self.max_length) for index in longer}, first)
        tokens = tokens_from_lists([row.ids for row in encoded], [row.type_ids for row in encoded], longer)
        self._check_segments(tokens, first)
        return tokens

    def _tokenize(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Each sample encoded, single texts apart from pairs."""
        encoded: list[Encoded] = [Encoded([], [], 0)] * len(samples)
        for has_pair in (False, True):
            rows = [index for index, (_, pair) in enumerate(samples) if (pair is not None) == has_pair]
            if not rows:
                continue
            texts = [samples[index] if has_pair else samples[index][0] for index in rows]
            found = self._encode(texts, has_pair, self.max_length if self.truncation else None)
            for index, row in zip(rows, found, strict=True):
                encoded[index] = row
        return encoded

    def _check_ids(self, tokens: Tokens, first: int) -> None:
        found = _named(tokens, tokens.ids, (tokens.ids < 0) | (tokens.ids >= self.vocab_size))
        known = f"outside the model's vocabulary of {self.vocab_size}: is this the model's own tokenizer?"
        refuse_samples({index: f"has token id {number}, {known}" for index, number in found.items()}, first)

    def _check_segments(self, tokens: Tokens, first: int) -> None:
        if tokens.type_ids is None:
            return
        found = _named(tokens, tokens.type_ids, tokens.type_ids >= self.type_vocab_size)
        known = f"outside the model's {self.type_vocab_size}: is this the model's own tokenizer?"
        refuse_samples({index: f"has segment id {number}, {known}" for index, number in found.items()}, first)


def _padding_only(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the token that pads; None where there is none, or where texts begin or end with it, too."""
    around = (tokenizer.cls_token_id, tokenizer.bos_token_id, tokenizer.sep_token_id, tokenizer.eos_token_id)
    return None if tokenizer.pad_token_id in around else tokenizer.pad_token_id


def _named(tokens: Tokens, values: torch.Tensor, wrong: torch.Tensor) -> dict[int, int]:
    """The first wrong value [T] of each sample that has one, by the sample."""
    if not wrong.any():
        return {}
    samples = torch.repeat_interleave(tokens.lengths)
    return {int(samples[position]): int(values[position]) for position in wrong.nonzero()[:, 0].flip(0)}


def _text_error(text: Any, pair: Any) -> str | None:
    for name, value in (("text", text), ("text_pair", pair)):
        if value is None and name == "text_pair":
            continue
        if not isinstance(value, str):
            return f"has a {name} that is no string: {shorten(value)}"
        if not value.strip():
            return f"has an empty {name}"
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"has a {name} that is no valid Unicode: {shorten(value)}"
    return None
