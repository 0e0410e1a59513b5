"""The texts that a command learns from, by the names of their columns."""

from __future__ import annotations

from geep_triton.files.rows import read_rows
from geep_triton.tokens.columns import Row

PAIRS = "text_pair"  # the column with second texts where none is named; it may be missing


def read_texts(source: str, split: str, text: str, pair: str | None, label: str | None = None) -> list[Row]:
    """Read the rows of a source of texts. Only the columns that are named are kept.

    Args:
        source, split: see `geep_triton.files.rows.read_rows`.
        text: column with the texts.
        pair: column with the second texts of pairs, which must be there. None: "text_pair" where it is.
        label: column with the labels, which must be there. None: they are not read.

    Returns:
        Rows with "text" and, where they are read, "text_pair" and "label".

    Raises:
        ValueError: as `read_rows`.
    """
    columns = {"text": text, "text_pair": pair or PAIRS} | ({} if label is None else {"label": label})
    required = ["text", *(["text_pair"] if pair is not None else []), *(["label"] if label is not None else [])]
    return [{name: row[name] for name in columns if name in row} for row in read_rows(source, split, required, columns)]
