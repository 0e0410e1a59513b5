"""All rows of a file, of a folder of files, or of a data set on the hub. Columns have the names of `datasets`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geep_triton.checks import check_choice, shorten
from geep_triton.files.formats import format_of, known_formats
from geep_triton.files.readers import open_reader
from geep_triton.files.shards import Listing, list_shards
from geep_triton.tokens.columns import Row
from geep_triton.tokens.samples import check_columns

OURS = ("text", "text_pair", "label")  # names of columns in the rows that are returned
# Words in the names of files by which `datasets` tells their split.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def read_rows(
    source: str | os.PathLike,
    split: str = "train",
    required: Sequence[str] = ("text",),
    columns: Mapping[str, str] | None = None,
) -> list[Row]:
    """All rows of a file, a folder or pattern of files, or a split of a data set on the hub.

    Args:
        source: path of a file (.parquet, .arrow, .csv, .tsv, .jsonl, also .csv.gz, ...); a folder or a pattern, whose files are
            read in the order of their names; or any name that `datasets.load_dataset` accepts (this needs the package
            datasets).
        split: split of a data set on the hub. Of a folder, the files whose names say this split as in `datasets` (train,
            dev-00000.parquet, ...); all of its files where no name says any split. A file has none.
        required: columns that every row must have, by the names of the rows that are returned.
        columns: "text", "text_pair" or "label" -> the name of that column in the source. Of a column of the source that
            would have the same name as another nothing is kept.

    Returns:
        The rows in order, each with the columns of the source, those of `columns` by the names "text", "text_pair", "label".

    Raises:
        ValueError: there is no such file, it has no rows, a line is bad (`BadLine`), or a column is missing.
        ImportError: `source` is a hub id and the package datasets is not installed.
    """
    named = dict(columns or {})
    for name in named:
        check_choice("name in columns", name, OURS)
    wanted = [named.get(name, name) for name in required]
    path = Path(source)
    if not str(source).strip():
        raise ValueError(f"source must be a file or the id of a data set, got {source!r}")
    if path.exists() or format_of(path) is not None or re.search(r"[*?\[]", str(source)):
        rows = _read_files(path, split, wanted)
    else:
        rows = _read_hub(str(source), split, wanted)
    if not rows:
        raise ValueError(f"{source} has no rows")
    return rows if not named else [_renamed(row, named) for row in rows]


def _renamed(row: Row, named: Mapping[str, str]) -> Row:
    others = {name: value for name, value in row.items() if name not in named and name not in named.values()}
    return {**others, **{name: row[theirs] for name, theirs in named.items() if theirs in row}}


def _read_files(path: Path, split: str, wanted: Sequence[str]) -> list[Row]:
    listing = list_shards([path])
    shards = _of_split(path, listing, split) if path.is_dir() else listing.shards
    rows: list[Row] = []
    for shard in shards:
        rows += open_reader(shard.path).rows(wanted)
    return rows


def _of_split(folder: Path, listing: Listing, split: str) -> Sequence[Any]:
    """The shards of a split, where names say splits. ValueError where others are named and this is not."""
    told = {name: [shard for shard in listing.shards if _says(shard.name, words)] for name, words in SPLITS.items()}
    told.setdefault(split, [shard for shard in listing.shards if _says(shard.name, (split,))])
    if told[split] or not any(told.values()):
        return told[split] or listing.shards
    known = ", ".join(name for name, shards in told.items() if shards)
    raise ValueError(f"{folder} has files of the splits {known}, and none of {shorten(split)}: name a split or a file")


def _says(name: str, words: Sequence[str]) -> bool:
    """Whether a path has one of these words in it, with no letters around it."""
    return re.search(rf"(?<![a-zA-Z])({'|'.join(map(re.escape, words))})(?![a-zA-Z])", name.lower()) is not None


def _read_hub(source: str, split: str, wanted: Sequence[str]) -> list[Row]:
    try:
        from datasets import ClassLabel, load_dataset
    except ImportError as error:
        raise ImportError(
            f"{source!r} is no file ({known_formats()}) and no folder; to read it from the hub, pip install datasets"
        ) from error
    dataset = load_dataset(source, split=split)
    check_columns(dict.fromkeys(dataset.column_names), wanted)
    classes = {name: of for name, of in dataset.features.items() if isinstance(of, ClassLabel)}
    return [{**row, **{name: of.int2str(row[name]) for name, of in classes.items() if _is_class(row[name])}} for row in dataset]


def _is_class(value: Any) -> bool:
    return isinstance(value, int) and value >= 0  # null and -1 stand for no label
