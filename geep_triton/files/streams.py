"""Opens files of lines, plain or compressed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pyarrow as pa


@contextmanager
def reading_bytes(path: str | os.PathLike, compression: str | None) -> Iterator[BinaryIO]:
    """Open a file to read what it holds, uncompressed.

    Raises:
        ValueError: a compressed file ends too early, or is damaged. This is raised where it is read.
    """
    if compression is None:
        with open(path, "rb") as file:  # noqa: PTH123  # a path of any kind
            yield file
        return
    with pa.OSFile(os.fspath(path), "rb") as raw, pa.CompressedInputStream(raw, compression) as stream:
        try:
            yield cast("BinaryIO", io.BufferedReader(stream, 1 << 16))
        except (OSError, EOFError) as error:  # arrow's own, which has no number; a disk's error has one
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(
                f"{path} is no whole {compression} file: it may still be being written, or is damaged: {error}"
            ) from None


@contextmanager
def writing_bytes(path: str | os.PathLike, compression: str | None) -> Iterator[BinaryIO]:
    """Open a file to write, compressed where that is wanted. The same content gives the same bytes."""
    with open(path, "wb") as file:  # noqa: PTH123  # a path of any kind
        if compression is None:
            yield file
        else:
            with pa.CompressedOutputStream(pa.PythonFile(file, "w"), compression) as stream:
                yield cast("BinaryIO", stream)
