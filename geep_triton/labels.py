"""Names of classes in two maps that must agree, and labels by number."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from geep_triton.checks import LARGEST_SCORE, check_int, shorten

MAX_LABELS = 1 << 16


def label_maps(
    id2label: Mapping[Any, Any] | None, label2id: Mapping[Any, Any] | None, num_labels: int | None = None
) -> tuple[dict[int, str] | None, dict[str, int] | None]:
    """Both maps, with ids ascending from 0. (None, None) if no names are given or the default names do not fit `num_labels`.

    If a map is missing, or has transformers' default names LABEL_0, LABEL_1, .. and the other does not, it is made from the
    other.

    Args:
        id2label: class id to name. Ids may be strings, as in JSON.
        label2id: class name to id.
        num_labels: required number of classes. None: the number that the maps name.

    Raises:
        ValueError: ids are not 0..C-1, two classes have the same name, the maps contradict each other, or there are more than
            65,536 classes or not `num_labels`.
        TypeError: `num_labels` is not an int.
    """
    if num_labels is not None:
        check_int("num_labels", num_labels, 1, MAX_LABELS)
    names, ids = _as_ints(id2label or {}, 0), _as_ints(label2id or {}, 1)
    unnamed = _is_default(names) and _is_default({index: name for name, index in ids.items()})
    if not (names or ids) or (unnamed and num_labels not in (None, len(names))):
        return None, None  # transformers then makes default names
    others = not set(names.values()) & set(ids)  # the maps share no name
    if not names or (others and _is_default(names) and len(names) == len(ids)):
        names = {index: name for name, index in ids.items()}
    elif not ids or (others and _is_default({index: name for name, index in ids.items()})):
        ids = {name: index for index, name in names.items()}
    count = len(names)
    wrong = None
    if names.keys() != set(range(count)):
        wrong = f"id2label must name the classes 0..{count - 1}"
    elif len(set(names.values())) != count:
        wrong = "id2label must name each class differently"
    elif ids != {name: index for index, name in names.items()}:
        wrong = "label2id must be the inverse of id2label"
    elif num_labels not in (None, count):
        wrong = f"num_labels={num_labels} must be the number of classes"
    elif count > MAX_LABELS:
        wrong = f"there may be {MAX_LABELS} classes at most"
    if wrong is not None:
        raise ValueError(
            f"{wrong}, got id2label={shorten(id2label, 200)} and label2id={shorten(label2id, 200)}; "
            "id2label=... in from_pretrained replaces both"
        )
    return dict(sorted(names.items())), dict(sorted(ids.items(), key=lambda item: item[1]))


def check_targets(labels: torch.Tensor, num_labels: int, ignored: int | None = None) -> None:
    """Raise ValueError unless labels [B] are classes 0..num_labels-1 or `ignored`. On a GPU the host waits for the check."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be ints between 0 and {num_labels - 1}, got {labels.dtype}: {shorten(labels.tolist())}")
    known = (labels >= 0) & (labels < num_labels)
    wrong = labels[~(known if ignored is None else known | (labels == ignored))]
    if wrong.numel():
        raise ValueError(f"labels must be between 0 and {num_labels - 1}, got {shorten(sorted(set(wrong.tolist())))}")


def as_score(label: Any) -> float | None:
    """A label as a finite number of at most `LARGEST_SCORE`, which a file may hold as text. None if it is none."""
    try:
        number = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= LARGEST_SCORE else None


def check_scores(labels: torch.Tensor) -> None:
    """Raise ValueError unless labels [B] are finite numbers. On a GPU the host waits for the check."""
    if labels.ndim != 1 or not labels.is_floating_point() or not labels.isfinite().all():
        raise ValueError(
            f"labels must be one finite number per sample, as floating point, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}: {shorten(labels.tolist())}"
        )


def check_label_sets(labels: torch.Tensor, num_labels: int) -> None:
    """Raise ValueError unless labels [B, C] are probabilities, mostly 0 or 1. On a GPU the host waits for the check.

    Args:
        labels: [B] will do for one label.
        num_labels: C.
    """
    shapes = ([len(labels), num_labels], [len(labels)]) if num_labels == 1 else ([len(labels), num_labels],)
    fits = labels.is_floating_point() and list(labels.shape) in shapes
    if not fits or not ((labels >= 0) & (labels <= 1)).all():
        raise ValueError(
            f"labels must be 0 or 1 for each of {num_labels} labels of a sample, as floating point, got {labels.dtype} of "
            f"shape {tuple(labels.shape)}: {shorten(labels.tolist())}"
        )


def _as_ints(labels: Mapping[Any, Any], place: int) -> dict[Any, Any]:
    """The map with ids as ints (None if invalid) and names as strings. Ids are its keys if `place` is 0, its values
    if it is 1.
    """
    if not isinstance(labels, Mapping):
        name = ("id2label", "label2id")[place]
        raise ValueError(f"{name} must be a mapping, got {shorten(labels)} of type {type(labels).__name__}")
    pairs: list[Any] = [
        tuple(_id(part) if side == place else str(part) for side, part in enumerate(item)) for item in labels.items()
    ]
    if len(dict(pairs)) < len(pairs) and None not in [pair[place] for pair in pairs]:
        raise ValueError(f"{('id2label', 'label2id')[place]} must not name a class twice, got {shorten(labels, 200)}")
    return dict(pairs)


def _id(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() else None


def _is_default(names: dict[int, str]) -> bool:
    return names == {index: f"LABEL_{index}" for index in range(len(names))}
