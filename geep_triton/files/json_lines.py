"""Reads JSON lines: an object in each line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from geep_triton.checks import SentError, shorten
from geep_triton.files.formats import format_of
from geep_triton.files.names import refuse_twice
from geep_triton.files.streams import reading_bytes
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns

ONE_OBJECT = "expected a JSON object in each line (JSON lines)"


class BadLine(SentError):
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
        path: a UTF-8 file with one JSON object per line. Its name says whether it is compressed (.gz, .zst).
        required: columns that every row must have.
        on_bad_line: makes a row in place of a bad line. None: the bad line is raised.

    Raises:
        BadLine: a line is bad. The error has the file, the line number and the reason.
    """
    for row in json_rows(path, required):
        if isinstance(row, BadLine) and on_bad_line is None:
            raise row
        yield on_bad_line(row) if isinstance(row, BadLine) and on_bad_line is not None else cast("Row", row)


def json_rows(path: str | os.PathLike, required: Sequence[str] = ()) -> Iterator[Row | BadLine]:
    """The rows of a JSON lines file, and in the place of each bad line what is wrong with it; see `read_json_lines`."""
    blank: list[int] = []
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    form = format_of(path)
    with reading_bytes(path, None if form is None else form.compression) as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                blank.append(number)
                continue
            for earlier in blank:
                yield BadLine(path, earlier, "blank line")
            blank.clear()
            row: Row | BadLine
            try:
                row = _json_row(raw.decode("utf-8-sig" if number == 1 else "utf-8"), decoder)
                check_columns(row, required)
            except ValueError as error:
                row = BadLine(path, number, str(error))
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
        refuse_twice([name for name, _ in pairs])
    return found
