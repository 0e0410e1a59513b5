"""Reads CSV files: fields with commas or tabs between them."""

from __future__ import annotations

import csv
import ctypes
import io
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from geep_triton.checks import shorten
from geep_triton.files.formats import format_of
from geep_triton.files.json_lines import BadLine
from geep_triton.files.names import refuse_twice
from geep_triton.files.streams import reading_bytes
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns

LONGEST_FIELD = ctypes.c_ulong(-1).value // 2  # the largest C long, which is the maximum of csv's limit
DELIMITERS = {"csv": (",", "commas"), "tsv": ("\t", "tabs")}


def read_csv(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[Row]:
    """Stream the rows of a CSV file (UTF-8, column names in the first line). Blank lines between rows are skipped.

    Fields may be of any length: this removes the limit of the module csv for the whole process.

    Args:
        path: the CSV file. Its name says whether tabs (.tsv) stand between fields instead of commas, and whether it is
            compressed (.gz, .zst).
        required: columns that the file must have.

    Raises:
        BadLine: a row is bad. The error has the file, the number of the row's first line and the reason.
    """
    records = _records(path, required)
    names = next(records, [])
    return (dict(zip(names, values, strict=True)) for values in records)


def csv_names(path: str | os.PathLike) -> list[str]:
    """The columns of a CSV file; none of a file without lines. BadLine as of `read_csv`."""
    with closing(_records(path, ())) as records:
        return next(records, [])


def _records(path: str | os.PathLike, required: Sequence[str]) -> Generator[list[str], None, None]:
    """The names of the columns, then the fields of each row."""
    csv.field_size_limit(LONGEST_FIELD)
    form = format_of(path)
    delimiter, words = DELIMITERS.get("csv" if form is None else form.kind, DELIMITERS["csv"])
    with reading_bytes(path, None if form is None else form.compression) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        head = file.readline()
        _refuse_no_header(path, head, words)
        # Without `strict`, a quote that is never closed would turn all following rows into one field.
        reader = csv.reader(_checked(chain([head] if head else [], file)), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        first = 1
        try:
            for values in reader:
                if names is None:
                    names = _header(values, required, words)
                    yield names
                elif values:
                    if len(values) != len(names):
                        raise ValueError(
                            f"expected {len(names)} fields as in the header, got {len(values)}{_span(first, reader)}"
                        )
                    yield values
                first = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise BadLine(path, reader.line_num + 1, str(error)) from None
        except (ValueError, csv.Error) as error:
            hint = _span(first, reader) if isinstance(error, csv.Error) else ""
            raise BadLine(path, first, f"{error}{hint}") from None


def _refuse_no_header(path: str | os.PathLike, line: str, words: str) -> None:
    """Raise BadLine if the first line of a file that is not empty does not name columns."""
    if line and (not line.strip() or line.lstrip().startswith(("{", "["))):
        got = "what looks like JSON (.jsonl)" if line.strip() else "a blank line"
        raise BadLine(path, 1, f"expected names of columns with {words} between them, got {got}: {shorten(line.strip())}")


def _span(first: int, reader: Any) -> str:
    last = reader.line_num
    return "" if last <= first else f" (the row continues to line {last}: is a quote not closed, or not doubled?)"


def _checked(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a file that was opened with escapes for invalid UTF-8. Each line is checked when it is read."""
    for line in lines:
        if not line.isascii():
            line.encode("utf-8", "surrogateescape").decode("utf-8")
        yield line


def _header(names: list[str], required: Sequence[str], words: str) -> list[str]:
    """The columns of a CSV file. ValueError if the first line repeats a column or lacks a required one."""
    refuse_twice(names)
    try:
        check_columns(dict.fromkeys(names), required)
    except ValueError as error:
        if len(names) > 1:  # they are apart, so another name is meant, not another file format
            raise
        raise ValueError(f"{error}; expected names of columns with {words} between them") from None
    return names
