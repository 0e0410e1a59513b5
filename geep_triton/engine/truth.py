"""The true answers to texts, as a user names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from geep_triton.answers import kind_of
from geep_triton.checks import LARGEST_SCORE, shorten
from geep_triton.config import MultiExitBertConfig
from geep_triton.engine.checks import label_ids
from geep_triton.labels import as_score
from geep_triton.tokens.rows import to_list


def true_answers(labels: Sequence[Any], samples: int, config: MultiExitBertConfig) -> torch.Tensor:
    """The true answers: [N] int64 classes, [N] float32 scores, or [N, C] bool sets of labels.

    Args:
        labels: one per text: the name or the number of a class; a number for a score; a list of names for a set of labels.
        samples: N.
        config: of the model that answers.

    Raises:
        TypeError: there is no list of labels.
        ValueError: a label is unknown or of another kind, or there are not N.
    """
    kind = kind_of(config)
    if kind == "classes":
        return label_ids(labels, samples, config.label2id)
    if isinstance(labels, str) or not hasattr(labels, "__len__"):
        wanted = "numbers" if kind == "score" else "lists of names"
        raise TypeError(f"labels must be a list of {wanted}, one per text, got {type(labels).__name__}")
    labels = to_list(labels)
    if len(labels) != samples:
        raise ValueError(f"labels must be one per text ({samples}), got {len(labels)}")
    if kind == "score":
        return torch.tensor([_number(label) for label in labels])
    found = torch.zeros(samples, config.num_labels, dtype=torch.bool)
    for row, names in enumerate(labels):
        if not isinstance(names, (list, tuple)):
            raise ValueError(f"labels of a multi-label model must be lists of names, got {shorten(names)}")
        if len(set(map(str, names))) < len(names):  # 0 or 1 for each label would pass for names where names are digits
            raise ValueError(
                "labels of a multi-label model must be lists of different names, not a 0 or 1 for each label, got "
                f"{shorten(names)}"
            )
        for name in names:
            if str(name) not in config.label2id:
                known = shorten(", ".join(config.label2id), 300)
                raise ValueError(f"unknown label {shorten(name)}; labels are lists of names, which are {known}")
            found[row, config.label2id[str(name)]] = True
    return found


def _number(label: Any) -> float:
    number = as_score(label)
    if number is None:
        raise ValueError(
            f"labels of a score must be finite numbers from -{LARGEST_SCORE:g} to {LARGEST_SCORE:g}, got {shorten(label)}"
        )
    return number
