"""Formats of files, which their names tell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from geep_triton.checks import shorten

KINDS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
TEXT_KINDS = ("csv", "tsv", "jsonl")  # these may be compressed as a whole; the others compress inside
ENDINGS = (*KINDS, *(f"{suffix}{end}" for suffix, kind in KINDS.items() if kind in TEXT_KINDS for end in COMPRESSIONS))


@dataclass(frozen=True)
class Format:
    """How a file holds rows.

    Attributes:
        kind: "parquet", "arrow", "csv", "tsv" or "jsonl".
        compression: "gzip" or "zstd" around all of it; None: there is none.
        suffix: the end of the file's name that says so.
    """

    kind: str
    compression: str | None
    suffix: str

    @property
    def is_text(self) -> bool:
        """Whether the file is made of lines."""
        return self.kind in TEXT_KINDS


def format_of(path: str | os.PathLike) -> Format | None:
    """The format that a name tells. None: it tells none that is known."""
    name = Path(path).name
    suffixes = Path(path).suffixes[-2:]
    compressed = len(suffixes) == 2 and suffixes[1].lower() in COMPRESSIONS
    found = suffixes if compressed else suffixes[-1:]
    kind = KINDS.get(found[0].lower()) if found else None
    if kind is None or (compressed and kind not in TEXT_KINDS):
        return None
    return Format(kind, COMPRESSIONS[found[1].lower()] if compressed else None, name[-len("".join(found)) :])


def parse_format(text: str) -> Format:
    """The format of a name such as "parquet", "jsonl" or "csv.gz". ValueError if there is no such format."""
    found = format_of(f"x.{text}")
    if found is None:
        raise ValueError(f"unknown format {shorten(text)}; known: {known_formats()}")
    return found


def known_formats() -> str:
    """The ends of names that tell a format, for messages."""
    return ", ".join([*KINDS, f"and of lines also with {' or '.join(COMPRESSIONS)}"])
