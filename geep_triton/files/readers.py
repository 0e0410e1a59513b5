"""Reads files of every format in windows: the columns that are asked for, and all of them to carry along."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from geep_triton.checks import shorten
from geep_triton.files.chunks import ArrowChunk, Chunk, PlainChunk
from geep_triton.files.csv_lines import csv_names, read_csv
from geep_triton.files.formats import Format, format_of, known_formats
from geep_triton.files.inferring import infer_schema
from geep_triton.files.json_lines import BadLine, json_rows, read_json_lines
from geep_triton.files.names import refuse_twice
from geep_triton.resumable import check_input
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns

IPC_MAGIC = b"ARROW1"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
UNFINISHED = "it may still be being written, or was cut"
Values: TypeAlias = tuple[Any, ...]


class Reader(Protocol):
    """A file of rows.

    Attributes:
        path: of the file.
        word: what the number of a row is called: "row", or "line" where each row is a line.
        is_stream: whether it is an Arrow IPC stream.
    """

    path: Path
    word: str
    is_stream: bool

    def columns(self) -> list[str]:
        """The columns that the file is known to have, read from its beginning; of JSON lines, those of the first row."""

    def all_columns(self) -> list[str]:
        """All columns, in order. Of JSON lines this reads the whole file."""

    def schema(self) -> pa.Schema:
        """Columns with their types. Of JSON lines this reads the whole file. ValueError if no types fit."""

    def count(self) -> int | None:
        """How many rows there are, where the file says so without being read. None: it does not."""

    def values(self, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Values | BadLine]:
        """The values of some columns row by row: `wanted`, then `optional`, which may be missing and are None then."""

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All rows, at most `size` together."""

    def rows(self, required: Sequence[str] = ()) -> Iterator[Row]:
        """All rows as Python has them. BadLine or ValueError if one cannot be read, or lacks a required column."""


class ArrowReader:
    """A file of Arrow data: parquet, IPC file or IPC stream.

    Raises:
        ValueError: the file is not whole, or has two columns of one name.
    """

    word = "row"

    def __init__(self, path: Path, form: Format) -> None:
        if not path.stat().st_size:
            raise ValueError(f"{path} has no bytes: {UNFINISHED}")
        self.path = path
        self._form = form
        self.is_stream = form.kind == "arrow" and _is_stream(path)
        with closing(self._batches(1, None)) as batches:
            self._schema: pa.Schema = next(batches)
        try:
            refuse_twice(self._schema.names)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def columns(self) -> list[str]:
        """See `Reader.columns`."""
        return list(self._schema.names)

    def all_columns(self) -> list[str]:
        """See `Reader.all_columns`."""
        return self.columns()

    def count(self) -> int | None:
        """See `Reader.count`."""
        return pq.read_metadata(self.path).num_rows if self._form.kind == "parquet" else None

    def schema(self) -> pa.Schema:
        """See `Reader.schema`."""
        return self._schema

    def values(self, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Values | BadLine]:
        """See `Reader.values`."""
        names = [name for name in (*wanted, *optional) if name in self._schema.names]
        for batch in self._data(4096, names):
            found = {name: batch.column(name).to_pylist() for name in names}
            nothing = [None] * batch.num_rows
            yield from zip(*(found.get(name, nothing) for name in (*wanted, *optional)), strict=True)

    def chunks(self, size: int) -> Iterator[Chunk]:
        """See `Reader.chunks`."""
        for batch in self._data(size, None):
            yield ArrowChunk(pa.Table.from_batches([batch], self._schema))

    def rows(self, required: Sequence[str] = ()) -> Iterator[Row]:
        """See `Reader.rows`. Labels of `datasets.ClassLabel` have their names."""
        try:
            check_columns(dict.fromkeys(self._schema.names), required)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None
        named = _class_names(self._schema)
        for chunk in self.chunks(4096):
            for row in chunk.rows():
                yield row | {name: names[row[name]] for name, names in named.items() if _is_class(row[name], names)}

    def _data(self, size: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        with closing(self._batches(size, columns)) as batches:
            next(batches)
            yield from batches

    def _batches(self, size: int, columns: Sequence[str] | None) -> Any:
        """The schema, then record batches. ValueError if the file is damaged."""
        try:
            if self._form.kind == "parquet":
                with pq.ParquetFile(self.path, memory_map=False) as file:
                    yield file.schema_arrow
                    yield from file.iter_batches(size, columns=columns, use_threads=False)
            elif self.is_stream:
                with pa.OSFile(str(self.path)) as raw, pa.ipc.open_stream(raw) as stream:
                    yield stream.schema
                    yield from _sliced(stream, size)
            else:
                with pa.OSFile(str(self.path)) as raw, pa.ipc.open_file(raw) as file:
                    yield file.schema
                    yield from _sliced((file.get_batch(index) for index in range(file.num_record_batches)), size)
        except (pa.ArrowException, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{self.path} is no whole {self._form.kind} file: {UNFINISHED}: {error}") from None


def _sliced(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def _is_stream(path: Path) -> bool:
    """Whether this is an IPC stream and no IPC file. ValueError for a stream without its end."""
    with path.open("rb") as file:
        if file.read(len(IPC_MAGIC)) == IPC_MAGIC:
            return False
        file.seek(max(0, path.stat().st_size - len(END_OF_STREAM)))
        # A stream that was cut between two batches would be read as a shorter one.
        if file.read() != END_OF_STREAM:
            raise ValueError(f"{path} is no Arrow IPC file, and no IPC stream with its end: {UNFINISHED}")
    return True


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Columns of `datasets.ClassLabel`, with the names of their classes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: of["names"] for name, of in features.items() if of.get("_type") == "ClassLabel" and name in schema.names}
    except (KeyError, TypeError, ValueError, AttributeError):  # no such metadata, or another library's
        return {}


def _is_class(value: Any, names: Sequence[str]) -> bool:
    return isinstance(value, int) and 0 <= value < len(names)


class CsvReader:
    """A CSV file, whose values are texts.

    Raises:
        BadLine: its first line does not name columns.
        ValueError: there is no first line.
    """

    word = "row"
    is_stream = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._names = csv_names(path)
        if not self._names:
            raise ValueError(f"{path} has no lines, expected names of columns in the first: {UNFINISHED}")

    def columns(self) -> list[str]:
        """See `Reader.columns`."""
        return self._names

    def all_columns(self) -> list[str]:
        """See `Reader.all_columns`."""
        return self._names

    def count(self) -> int | None:
        """See `Reader.count`."""
        return None

    def schema(self) -> pa.Schema:
        """See `Reader.schema`."""
        return pa.schema([(name, pa.string()) for name in self._names])

    def values(self, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Values | BadLine]:
        """See `Reader.values`."""
        for row in self.rows():
            yield (*(row[name] for name in wanted), *(row.get(name) for name in optional))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """See `Reader.chunks`."""
        return _plain_chunks(self.rows(), size, self.word)

    def rows(self, required: Sequence[str] = ()) -> Iterator[Row]:
        """See `Reader.rows`."""
        return read_csv(self.path, required)


class JsonReader:
    """A file of JSON lines, whose rows may have different columns."""

    word = "line"
    is_stream = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> list[str]:
        """See `Reader.columns`."""
        first = next(iter(json_rows(self.path)), {})
        return [] if isinstance(first, BadLine) else list(first)

    def all_columns(self) -> list[str]:
        """See `Reader.all_columns`."""
        return list(dict.fromkeys(chain.from_iterable(row for row in json_rows(self.path) if not isinstance(row, BadLine))))

    def count(self) -> int | None:
        """See `Reader.count`."""
        return None

    def schema(self) -> pa.Schema:
        """See `Reader.schema`."""
        numbered = enumerate(json_rows(self.path), start=1)
        try:
            return infer_schema((number, row) for number, row in numbered if not isinstance(row, BadLine))
        except ValueError as error:
            raise ValueError(f"{self.path}, {error}") from None

    def values(self, wanted: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Values | BadLine]:
        """See `Reader.values`. A row without a wanted column is a bad line."""
        for row in json_rows(self.path, wanted):
            yield row if isinstance(row, BadLine) else (*(row[name] for name in wanted), *(row.get(name) for name in optional))

    def chunks(self, size: int) -> Iterator[Chunk]:
        """See `Reader.chunks`. What cannot be read has a row without values."""
        rows = (None if isinstance(row, BadLine) else row for row in json_rows(self.path))
        return _plain_chunks(rows, size, self.word)

    def rows(self, required: Sequence[str] = ()) -> Iterator[Row]:
        """See `Reader.rows`."""
        return read_json_lines(self.path, required)


def _plain_chunks(rows: Iterator[Row | None], size: int, word: str) -> Iterator[Chunk]:
    first = 0
    while window := list(islice(rows, size)):
        yield PlainChunk(window, range(first, first + len(window)), word)
        first += len(window)


def open_reader(path: Path) -> Reader:
    """A reader of a file of any format.

    Raises:
        ValueError: the name tells no known format, or the file is not whole; see the readers.
    """
    form = format_of(path)
    if form is None:
        raise ValueError(f"{path}: unknown file type {path.suffix!r}; known: {known_formats()}")
    if path.exists() and not path.is_file():  # a pipe would be waited for, and can be read only once
        check_input(path)
    if form.compression is not None and not path.stat().st_size:
        raise ValueError(f"{path} has no bytes: {UNFINISHED}")
    if not form.is_text:
        return ArrowReader(path, form)
    return JsonReader(path) if form.kind == "jsonl" else CsvReader(path)


def check_has(reader: Reader, wanted: Sequence[str]) -> None:
    """Raise ValueError unless a file has these columns. Of JSON lines at least one row must have each."""
    names = reader.columns()
    if reader.word == "line" and not names:
        return  # no row yet, or a first line that is reported where it is read
    if not set(wanted) <= set(names):
        names = reader.all_columns()
    try:
        check_columns(dict.fromkeys(names), wanted)
    except ValueError as error:
        raise ValueError(f"{reader.path}: {shorten(str(error), 400)[1:-1]}") from None
