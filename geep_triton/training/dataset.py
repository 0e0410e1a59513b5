"""Labelled rows as a data set for the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from geep_triton.checks import LARGEST_SCORE, check_choice, check_int, check_kind, shorten
from geep_triton.config import MULTI_LABEL, PROBLEM_TYPES
from geep_triton.labels import as_score
from geep_triton.tokens.columns import Row
from geep_triton.tokens.encoder import Encoder
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import check_columns, check_rows, iter_samples
from geep_triton.warn import warn

A_NUMBER = f"a finite number from -{LARGEST_SCORE:g} to {LARGEST_SCORE:g}"
ONE_LABEL = "a model of one label is told its name (label2id, --labels) and takes 0, 1 or a probability for each row"


def label_names(rows: Sequence[Row], problem_type: str | None = None) -> list[str]:
    """The distinct labels as names, sorted numerically if all are integers, else alphabetically.

    Args:
        rows: rows with a column "label".
        problem_type: as in the model's configuration. With "multi_label_classification" each row has a list of names.

    Raises:
        ValueError: there are no rows, a row has no label or another kind of label, or there are fewer than two classes.
        TypeError: `rows` is not a sequence of rows.
    """
    check_rows(rows)
    if problem_type == MULTI_LABEL:
        names = {name for index, row in enumerate(rows) for name in _names(row, index)}
    else:
        names = {_name(row, index) for index, row in enumerate(rows)}
    if len(names) < 2:
        one = f"; {ONE_LABEL}" if problem_type == MULTI_LABEL else ""
        raise ValueError(f"training needs at least two classes, got {sorted(names)}{one}")
    return sorted(names, key=int) if all(name.lstrip("-").isdecimal() for name in names) else sorted(names)


def _label(row: Row, index: int) -> Any:
    check_kind(f"row {index}", row, Mapping)
    check_columns(row, ("label",))
    label = row["label"]
    if hasattr(label, "tolist"):  # of numpy or torch
        label = label.tolist()
    if label is None or label == "":
        raise ValueError(f"row {index} has no label")
    return label


def _name(row: Row, index: int) -> str:
    """The one label of a row."""
    label = _label(row, index)
    if not isinstance(label, (str, int)):
        raise ValueError(
            f"row {index} has the label {shorten(label)}, expected a class: a number is a target for problem_type "
            f"'regression', a list of names for {MULTI_LABEL!r}"
        )
    return str(label)


def _names(row: Row, index: int) -> list[str]:
    """The labels of a row, of which there may be none."""
    labels = _label(row, index)
    if not isinstance(labels, (list, tuple)) or not all(isinstance(name, (str, int)) for name in labels):
        raise ValueError(
            f"row {index} has the label {shorten(labels)}, expected a list of names for {MULTI_LABEL!r}; {ONE_LABEL}"
        )
    names = [str(name) for name in labels]
    if len(set(names)) < len(names):  # 0 or 1 for each label would pass for names where names are digits
        raise ValueError(f"row {index} has the label {shorten(labels)}, expected a list of different names for {MULTI_LABEL!r}")
    return names


def _number(row: Row, index: int, expected: str = A_NUMBER) -> float:
    """The label of a row as a number, which a file may hold as text."""
    label = _label(row, index)
    number = as_score(label)
    if number is None:
        raise ValueError(f"row {index} has the label {shorten(label)}, expected {expected}")
    return number


def _known(name: str, index: int, label2id: Mapping[str, int]) -> int:
    if name not in label2id:
        raise ValueError(f"row {index} has the label {shorten(name)}, unseen in training; known: {', '.join(label2id)}")
    return label2id[name]


def _targets(
    rows: Sequence[Row], label2id: Mapping[str, int] | None, problem_type: str | None
) -> list[int] | list[float] | list[list[float]] | None:
    """The labels of the rows as the model takes them, or None if they are not read."""
    if problem_type is not None:
        check_choice("problem_type", problem_type, PROBLEM_TYPES)
    if problem_type == "regression":
        return [_number(row, index) for index, row in enumerate(rows)]
    if label2id is None:
        return None
    check_kind("label2id", label2id, Mapping)
    if problem_type != MULTI_LABEL:
        return [_known(_name(row, index), index, label2id) for index, row in enumerate(rows)]
    if len(label2id) == 1:
        return [_number(row, index, "0, 1 or a probability") for index, row in enumerate(rows)]
    found = []
    for index, row in enumerate(rows):
        ids = {_known(name, index, label2id) for name in _names(row, index)}
        found.append([float(number in ids) for number in range(len(label2id))])
    return found


class TextDataset(Dataset):
    """Tokenized rows. Each item is {"input_ids", "labels"}, plus "token_type_ids" if any row has a text pair.

    Args:
        rows: rows with the columns text, label and optionally text_pair.
        encoder: tokenizes and truncates the texts.
        label2id: class name to class id, as in the model's configuration. None: items have no labels (for recipes that need
            none), unless `problem_type` is "regression".
        window: number of rows to tokenize at once.
        progress: whether to show a progress bar.
        problem_type: as in the model's configuration. With "regression" a label is a number. With
            "multi_label_classification" it is a list of names; for a model of one label it is 0, 1 or a probability.

    Raises:
        ValueError: there are no rows, or a label is not in `label2id` or not of the kind that `problem_type` says (the error
            names it, its row and the known labels). `Encoder` raises its own errors too.
        TypeError: `rows` is not a sequence of rows.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        encoder: Encoder,
        label2id: Mapping[str, int] | None,
        window: int = 4096,
        progress: bool = True,
        problem_type: str | None = None,
    ) -> None:
        check_rows(rows)
        check_kind("encoder", encoder, Encoder)
        check_int("window", window, 1)
        self.labels = _targets(rows, label2id, problem_type)
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
