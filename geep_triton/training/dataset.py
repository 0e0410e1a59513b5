"""Labelled rows as the trainer wants them."""

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
    """The distinct labels as names, sorted (numerically where all are integers).

    Raises:
        ValueError: no rows, a row without a label, or fewer than two classes. TypeError: no rows, but something else.
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
        raise ValueError(f"row {index} has the label {row['label']}: training needs classes, not numbers to regress to")
    return row["label"]


class TextDataset(Dataset):
    """Tokenized rows, each {"input_ids", "labels"} and, where any row has a pair, "token_type_ids".

    Args:
        rows: with columns text, label and optionally text_pair.
        encoder: tokenizes and truncates.
        label2id: class names to ids, as in the model's configuration; None: without labels, for recipes that need none.
        window: rows tokenized at once.

    Raises:
        ValueError: no rows; a label that is not in `label2id`, naming it, its row and the known ones; and all that `Encoder`
            raises. TypeError: no rows, but something else.
    """

    def __init__(self, rows: Sequence[Row], encoder: Encoder, label2id: Mapping[str, int] | None, window: int = 4096) -> None:
        check_rows(rows)
        check_kind("encoder", encoder, Encoder)
        check_int("window", window, 1)
        if label2id is not None:
            check_kind("label2id", label2id, Mapping)
        self.labels: list[int] | None = None if label2id is None else []
        for index, row in enumerate(rows if label2id is not None else ()):
            name = str(_label(row, index))
            if name not in label2id:
                raise ValueError(f"row {index} has the label {shorten(name)}, unseen in training; known: {', '.join(label2id)}")
            self.labels.append(label2id[name])
        parts, padding = [], None
        with tqdm(total=len(rows), desc="tokenize", unit="row", leave=False) as bar:
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
        item = {"input_ids": tokens.ids[span].tolist()}
        if self.labels is not None:
            item["labels"] = self.labels[index]
        if tokens.type_ids is not None:
            item["token_type_ids"] = tokens.type_ids[span].tolist()
        return item
