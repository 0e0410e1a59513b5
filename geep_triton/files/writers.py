"""Writes files of every format, chunk by chunk."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from geep_triton.checks import shorten
from geep_triton.files.chunks import Chunk, csv_text, json_text
from geep_triton.files.csv_lines import DELIMITERS
from geep_triton.files.formats import Format
from geep_triton.files.streams import writing_bytes

CRLF = "\r\n"
GROUP_ROWS = 65_536  # the most rows of a row group of a parquet file, or of a batch of an Arrow file
GROUP_BYTES = 64 << 20  # and about the most bytes

CRLF = "\r\n"

Write = Callable[[Chunk], None]


@contextmanager
def writing(path: Path, form: Format, columns: Sequence[str], schema: pa.Schema | None, stream: bool) -> Iterator[Write]:
    """Open a file to write chunks into. The same chunks give the same bytes.

    Args:
        path: the file; it is replaced.
        form: its format.
        columns: of the rows, in order. JSON lines do not ask for them: there each row has its own.
        schema: of the rows; it must be there for parquet and Arrow.
        stream: write an Arrow IPC stream instead of an IPC file.

    Raises:
        ValueError: a value cannot be written in this format; the error names the row or the column.
        OSError: the disk is full, or the file cannot be written.
    """
    if form.is_text:
        with writing_bytes(path, form.compression) as raw:
            yield _json_writer(raw.write) if form.kind == "jsonl" else _csv_writer(raw.write, form.kind, columns)
    else:
        with path.open("wb") as raw, _arrow_writer(raw, form, _known(schema), stream) as arrow:
            held: list[pa.Table] = []
            yield lambda chunk: _hold(held, chunk.table(_known(schema)), arrow)
            _flush(held, arrow)


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Let errors about values name the file that they are from."""
    try:
        yield
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can have
        raise ValueError(
            f"{source}: {shorten(error.object)} is no valid Unicode, and can be written as JSON lines only"
        ) from None
    except (ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError):
            raise
        raise ValueError(f"{source}: {error}") from None


def check_writable(form: Format, schema: pa.Schema) -> None:
    """Raise ValueError if a file of Arrow data cannot have such columns, or could not be read again with them.

    Parquet lacks some types of Arrow, and writes columns that are nested more deeply than it reads.
    """
    if form.kind != "parquet":
        return
    sink = pa.BufferOutputStream()
    try:
        pq.ParquetWriter(sink, schema).close()
        pq.read_schema(pa.BufferReader(sink.getvalue()))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"columns that parquet cannot have: {error}; choose another format, or leave them out (--columns)"
        ) from None


def _known(schema: pa.Schema | None) -> pa.Schema:
    if schema is None:
        raise ValueError("schema must be given for a file of Arrow data, got None")
    return schema


def _arrow_writer(raw: Any, form: Format, schema: pa.Schema, stream: bool) -> Any:
    if form.kind == "parquet":
        return pq.ParquetWriter(raw, schema)
    return pa.ipc.new_stream(raw, schema) if stream else pa.ipc.new_file(raw, schema)


def _hold(held: list[pa.Table], table: pa.Table, arrow: Any) -> None:
    """Keep a table until there are enough for a group: many small ones would be slow to read."""
    held.append(table)
    if sum(of.num_rows for of in held) >= GROUP_ROWS or sum(of.nbytes for of in held) >= GROUP_BYTES:
        _flush(held, arrow)


def _flush(held: list[pa.Table], arrow: Any) -> None:
    if held:
        arrow.write_table(pa.concat_tables(held).combine_chunks())
        held.clear()


def _json_writer(write: Callable[[bytes], Any]) -> Write:
    def write_chunk(chunk: Chunk) -> None:
        lines = [_named(json_text, row) + "\n" for row in chunk.rows()]
        write("".join(lines).encode("utf-8", "backslashreplace"))  # JSON's own escape for invalid Unicode

    return write_chunk


class _CsvLines:
    """What csv writes to. It is told of the line end that makes it quote every carriage return, and ours is "\\n"."""

    def __init__(self) -> None:
        self.rows: list[str] = []

    def write(self, row: str) -> None:
        self.rows.append(f"{row.removesuffix(CRLF)}\n")


def _csv_writer(write: Callable[[bytes], Any], kind: str, columns: Sequence[str]) -> Write:
    text = _CsvLines()
    rows = csv.writer(text, delimiter=DELIMITERS[kind][0], lineterminator=CRLF)

    def flush() -> None:
        write("".join(text.rows).encode("utf-8"))
        text.rows.clear()

    def write_chunk(chunk: Chunk) -> None:
        for row in chunk.rows():
            rows.writerow([_named(lambda of: csv_text(next(iter(of.values()))), {name: row.get(name)}) for name in columns])
        flush()

    rows.writerow(columns)
    flush()
    return write_chunk


def _named(convert: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
    """The text of a row. ValueError that names the column where a value has no text."""
    try:
        return convert(row)
    except (TypeError, ValueError):
        for name, value in row.items():
            try:
                convert({name: value})
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"column {name!r} cannot be written as text ({error}): choose another format, or leave it out (--columns)"
                ) from None
        raise
