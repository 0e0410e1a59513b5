"""Reads rows from files. Columns have the names of `datasets`: text, text_pair, label."""

from __future__ import annotations

import csv
import ctypes
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from geep_triton.checks import shorten
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns

ONE_OBJECT = "expected a JSON object in each line (JSON lines)"
LONGEST_FIELD = ctypes.c_ulong(-1).value // 2  # the largest C long, which is the maximum of csv's limit


class BadLine(ValueError):
    """A line of a file that is not a row. The message has the file's name and the line's number (from 1).

    Attributes:
        number: number of the line, from 1.
        reason: what is wrong with it.
    """

    def __init__(self, path: str | os.PathLike, number: int, reason: str) -> None:
        super().__init__(f"{path}, line {number}: {reason}")
        self.number = number
        self.reason = reason


def read_json_lines(
    path: str | os.PathLike, required: Sequence[str] = (), on_bad_line: Callable[[BadLine], Row] | None = None
) -> Iterator[Row]:
    """Stream the rows of a JSON lines file. Blank lines are bad lines, except after the last row.

    Args:
        path: a UTF-8 file with one JSON object per line.
        required: columns that every row must have.
        on_bad_line: makes a row in place of a bad line. None: the bad line is raised.

    Raises:
        BadLine: a line is bad. The error has the file, the line number and the reason.
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
    """A JSON object. ValueError if a name appears twice, because only one of its values would be kept."""
    found = dict(pairs)
    if len(found) < len(pairs):
        _refuse_twice([name for name, _ in pairs])
    return found


def _refuse_twice(names: Sequence[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"column {', '.join(map(shorten, twice))} appears more than once; columns: {shorten(names)}")


def _refuse(error: BadLine, on_bad_line: Callable[[BadLine], Row] | None) -> Row:
    if on_bad_line is None:
        raise error
    return on_bad_line(error)


def read_csv(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[Row]:
    """Stream the rows of a CSV file (UTF-8, commas, column names in the first line). Blank lines between rows are skipped.

    Fields may be of any length: this removes the limit of the module csv for the whole process.

    Args:
        path: the CSV file.
        required: columns that the file must have.

    Raises:
        BadLine: a row is bad. The error has the file, the number of the row's first line and the reason.
    """
    csv.field_size_limit(LONGEST_FIELD)
    with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        _refuse_no_header(path, file.readline())
        file.seek(0)
        # Without `strict`, a quote that is never closed would turn all following rows into one field.
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
    """Raise BadLine if the first line of a file that is not empty does not name columns."""
    if line and (not line.strip() or line.lstrip().startswith(("{", "["))):
        got = "what looks like JSON (.jsonl)" if line.strip() else "a blank line"
        raise BadLine(path, 1, f"expected names of columns with commas between them, got {got}: {shorten(line.strip())}")


def _span(first: int, reader: Any) -> str:
    last = reader.line_num
    return "" if last <= first else f" (the row continues to line {last}: is a quote not closed, or not doubled?)"


def _checked(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file that was opened with escapes for invalid UTF-8. Each line is checked when it is read."""
    for line in lines:
        if not line.isascii():
            line.encode("utf-8", "surrogateescape").decode("utf-8")
        yield line


def _header(names: list[str], required: Sequence[str]) -> list[str]:
    """The columns of a CSV file. ValueError if the first line repeats a column or lacks a required one."""
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
        source: path of a file, or any name that `datasets.load_dataset` accepts (this needs the package datasets).
        split: split of a data set on the hub. Files have none.
        required: columns that every row must have.

    Returns:
        The rows in order.

    Raises:
        ValueError: there is no such file, it has no rows, a line is bad (`BadLine`), or a column is missing.
        ImportError: `source` is a hub id and the package datasets is not installed.
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
            f"{source!r} is not a .jsonl, .json or .csv file; to read it from the hub, pip install datasets"
        ) from error
    dataset = load_dataset(source, split=split)
    check_columns(dict.fromkeys(dataset.column_names), required)
    label = dataset.features.get("label")
    named = label.int2str if isinstance(label, ClassLabel) else None
    rows: list[Row] = [dict(row) if named is None else {**row, "label": named(row["label"])} for row in dataset]
    if not rows:
        raise ValueError(f"{source}, split {split!r}, has no rows")
    return rows
