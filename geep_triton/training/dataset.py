"""Labelled rows as a data set for the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from geep_triton.checks import check_int, check_kind, shorten
from geep_triton.data import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import check_columns, check_rows, iter_samples
from geep_triton.warn import warn


def label_names(rows: Sequence[Row]) -> list[str]:
    """The distinct labels as names, sorted numerically if all are integers, else alphabetically.

    Args:
        rows: rows with a column "label".

    Raises:
        ValueError: there are no rows, a row has no label or a float label, or there are fewer than two classes.
        TypeError: `rows` is not a sequence of rows.
    """
    check_rows(rows)
    names = {str(_label(row, index)) for index, row in enumerate(rows)}
    if len(names) < 2:
        raise ValueError(f"training needs at least two classes, got {sorted(names)}")
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def _label(row: Row, index: int) -> Any:
    check_kind(f"row {index}", row, Mapping)
    check_columns(row, ("label",))
    if row["label"] is None or row["label"] == "":
        raise ValueError(f"row {index} has no label")
    if isinstance(row["label"], float):
        raise ValueError(f"row {index} has the label {row['label']}: training needs classes, not regression targets")
    return row["label"]


def _label_ids(rows: Sequence[Row], label2id: Mapping[str, int]) -> list[int]:
    check_kind("label2id", label2id, Mapping)
    labels = []
    for index, row in enumerate(rows):
        name = str(_label(row, index))
        if name not in label2id:
            raise ValueError(f"row {index} has the label {shorten(name)}, unseen in training; known: {', '.join(label2id)}")
        labels.append(label2id[name])
    return labels


class TextDataset(Dataset):
    """Tokenized rows. Each item is {"input_ids", "labels"}, plus "token_type_ids" if any row has a text pair.

    Args:
        rows: rows with the columns text, label and optionally text_pair.
        encoder: tokenizes and truncates the texts.
        label2id: class name to class id, as in the model's configuration. None: items have no labels (for recipes that need
            none).
        window: number of rows to tokenize at once.
        progress: whether to show a progress bar.

    Raises:
        ValueError: there are no rows, or a label is not in `label2id` (the error names it, its row and the known labels).
            `Encoder` raises its own errors too.
        TypeError: `rows` is not a sequence of rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        encoder: Encoder,
        label2id: Mapping[str, int] | None,
        window: int = 4096,
        progress: bool = True,
    ) -> None:
        check_rows(rows)
        check_kind("encoder", encoder, Encoder)
        check_int("window", window, 1)
        self.labels: list[int] | None = None if label2id is None else _label_ids(rows, label2id)
        parts, padding = [], None
        with tqdm(total=len(rows), desc="tokenize", unit="row", leave=False, disable=not progress) as bar:
            for first in range(0, len(rows), window):
                part = list(iter_samples(rows[first : first + window]))
                parts.append(encoder(part, first))
                padding = padding or encoder.padding_of(part, parts[-1], first)
                bar.update(len(part))
        if padding is not None:
            warn(padding)
        self.tokens = Tokens.concatenate(parts)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tokens
        span = slice(int(tokens.offsets[index]), int(tokens.offsets[index + 1]))
        item: dict[str, Any] = {"input_ids": tokens.ids[span].tolist()}
        if self.labels is not None:
            item["labels"] = self.labels[index]
        if tokens.type_ids is not None:
            item["token_type_ids"] = tokens.type_ids[span].tolist()
        return item
