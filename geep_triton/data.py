"""Text rows: reading files, and turning text into token ids. Columns are those of `datasets`: text, text_pair, label."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from geep_triton.checks import shorten
from geep_triton.outputs import Tokens

Row = Mapping[str, Any]
Sample = tuple[str, str | None]


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
    with Path(path).open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                blank.append(number)
                continue
            for earlier in blank:
                yield _refuse(BadLine(path, earlier, "blank line"), on_bad_line)
            blank.clear()
            try:
                row = json.loads(raw.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"expected a JSON object, got {shorten(row)}")
                check_columns(row, required)
            except ValueError as error:
                row = _refuse(BadLine(path, number, str(error)), on_bad_line)
            yield row


def _refuse(error: BadLine, on_bad_line: Callable[[BadLine], Row] | None) -> Row:
    if on_bad_line is None:
        raise error
    return on_bad_line(error)


def read_csv(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[Row]:
    """Stream the rows of a CSV file (UTF-8, first line names the columns). Raises BadLine."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                raise BadLine(path, reader.line_num, f"expected {len(reader.fieldnames)} fields as in the header")
            try:
                check_columns(row, required)
            except ValueError as error:
                raise BadLine(path, reader.line_num, str(error)) from None
            yield row


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
    if path.suffix in (".jsonl", ".json"):
        reader: Callable[..., Iterable[Row]] = read_json_lines
    elif path.suffix == ".csv":
        reader = read_csv
    else:
        return _read_hub(str(source), split, required)
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
    """Raise ValueError naming the columns that `row` lacks and those it has."""
    missing = [name for name in required if name not in row]
    if missing:
        raise ValueError(f"missing column {', '.join(map(repr, missing))}; columns: {', '.join(map(repr, row)) or 'none'}")


def iter_samples(inputs: Any, text_column: str = "text", pair_column: str = "text_pair") -> Iterator[Sample | Row]:
    """One (text, pair or None) per sample from whatever holds texts.

    Args:
        inputs: a text; a mapping of columns to lists or a pandas DataFrame; or an iterable of texts, of (text, pair)
            tuples, or of rows (mappings, as a `datasets.Dataset` yields). A row with `input_ids` passes through as it
            is: it is tokenized already.

    Raises:
        TypeError: an element is none of these. ValueError: a row lacks the text column.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    elif isinstance(inputs, Mapping):
        inputs = _rows_of_columns(inputs)
    elif hasattr(inputs, "iterrows"):  # a pandas DataFrame, whose own iterator gives column names
        inputs = inputs.to_dict("records")
    for index, item in enumerate(inputs):
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


def _rows_of_columns(columns: Mapping[str, Any]) -> Iterator[Row]:
    if all(isinstance(values, str) for values in columns.values()):
        return iter([columns])
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must be of one length, got {lengths}")
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


class BadSample(ValueError):
    """A sample that cannot be answered; carries its index in the user's input."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"sample {index} {reason}")
        self.index = index
        self.reason = reason


class Encoder:
    """Turns samples into `Tokens` with a tokenizer; truncates only when asked, and counts it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens a sample may have, special tokens included.
        truncation: cut longer samples (longest of a pair first) instead of raising.
        vocab_size: ids must be below it; None: not checked.

    Attributes:
        truncated: samples cut so far.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        truncation: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.truncation = truncation
        self.vocab_size = vocab_size
        self.truncated = 0

    def __call__(self, samples: Sequence[Sample | Row], first: int = 0) -> Tokens:
        """Encode a window of samples; `first` is the index of samples[0] in the user's input, for errors.

        Raises:
            BadSample: a text that is empty or no string, a pair missing here and there, a sample longer than max_length,
                or an id outside the vocabulary. ValueError: a mix of texts and tokenized rows.
        """
        tokenized = [isinstance(sample, Mapping) for sample in samples]
        if all(tokenized):
            ids, type_ids = self._tokenized_rows(samples)
            too_long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
            if too_long:
                raise self._too_long(first + too_long[0], len(ids[too_long[0]]))
        elif any(tokenized):
            raise ValueError(f"samples {first}..{first + len(samples) - 1} mix texts and rows of input_ids")
        else:
            ids, type_ids = self._texts(samples, first)
        tokens = Tokens.from_lists(ids, type_ids)
        self._check_ids(tokens, first)
        return tokens

    def _texts(self, samples: Sequence[Sample], first: int) -> tuple[list[list[int]], list[list[int]] | None]:
        has_pair = samples[0][1] is not None
        for index, (text, pair) in enumerate(samples, start=first):
            if (pair is not None) != has_pair:
                raise BadSample(index, f"has {'no' if has_pair else 'a'} text_pair, unlike sample {first}")
            for name, value in (("text", text), ("text_pair", pair)):
                if value is None and name == "text_pair":
                    continue
                if not isinstance(value, str):
                    raise BadSample(index, f"has a {name} that is no string: {shorten(value)}")
                if not value.strip():
                    raise BadSample(index, f"has an empty {name}")
        texts = [text for text, _ in samples]
        pairs = [pair for _, pair in samples] if has_pair else None
        ids, type_ids = self._tokenize(texts, pairs, truncation=False)
        too_long = [i for i, row in enumerate(ids) if len(row) > self.max_length]
        if too_long:
            if not self.truncation:
                raise self._too_long(first + too_long[0], len(ids[too_long[0]]))
            self.truncated += len(too_long)
            cut, cut_types = self._tokenize(
                [texts[i] for i in too_long], pairs and [pairs[i] for i in too_long], truncation=True
            )
            for position, i in enumerate(too_long):
                ids[i] = cut[position]
                if type_ids is not None:
                    type_ids[i] = cut_types[position]
        return ids, type_ids

    def _tokenize(
        self, texts: list[str], pairs: list[str] | None, truncation: bool
    ) -> tuple[list[list[int]], list[list[int]] | None]:
        encoded = self.tokenizer(
            texts,
            pairs,
            truncation=truncation,
            max_length=self.max_length if truncation else None,
            return_attention_mask=False,
            return_token_type_ids=pairs is not None,
            verbose=False,
        )
        return encoded["input_ids"], encoded.get("token_type_ids")

    def _tokenized_rows(self, rows: Sequence[Row]) -> tuple[list[list[int]], list[list[int]] | None]:
        ids = [_unpadded(row, "input_ids") for row in rows]
        if not any("token_type_ids" in row for row in rows):
            return ids, None
        types = [
            _unpadded(row, "token_type_ids") if "token_type_ids" in row else [0] * len(i)
            for row, i in zip(rows, ids, strict=True)
        ]
        return ids, types

    def _too_long(self, index: int, length: int) -> BadSample:
        return BadSample(
            index, f"has {length} tokens, more than the {self.max_length} allowed; truncation=True cuts such samples"
        )

    def _check_ids(self, tokens: Tokens, first: int) -> None:
        if not int(tokens.lengths.min()):
            raise BadSample(first + int(tokens.lengths.argmin()), "has no tokens")
        if self.vocab_size is None:
            return
        outside = (tokens.ids < 0) | (tokens.ids >= self.vocab_size)
        if outside.any():
            position = int(outside.int().argmax())
            sample = int((tokens.offsets[1:] <= position).sum())
            raise BadSample(
                first + sample,
                f"has token id {int(tokens.ids[position])}, outside the model's vocabulary of {self.vocab_size}: "
                "is this the model's own tokenizer?",
            )


def _unpadded(row: Row, column: str) -> list[int]:
    values = _as_list(row[column])
    if "attention_mask" not in row:
        return values
    return [value for value, real in zip(values, _as_list(row["attention_mask"]), strict=True) if real]


def _as_list(values: Any) -> list[int]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
