"""Answers as text-embeddings-inference gives them, in JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from geep_triton.answers import Answers, LabelSet, OneClass
from geep_triton.engine.ranking import Ranking


def predictions_of(logits: torch.Tensor, answers: Answers, raw: bool) -> list[list[dict[str, Any]]]:
    """For each input a score for each label, the highest first; see `geep_triton.serving.bodies.Prediction`.

    Scores are probabilities: by softmax over classes, by a sigmoid for label sets and for one score, also for that of a
    regression, as there.

    Args:
        logits: [N, C] float32.
        answers: what they mean.
        raw: give the logits.
    """
    scores = logits
    if not raw:
        scores = answers.probabilities(logits) if isinstance(answers, (OneClass, LabelSet)) else logits.sigmoid()
    order = scores.argsort(dim=-1, descending=True, stable=True).tolist()
    return [
        [{"score": row[index], "label": answers.id2label[index]} for index in best]
        for row, best in zip(scores.tolist(), order, strict=True)
    ]


def ranks_of(found: Ranking, raw: bool, texts: Sequence[str] | None) -> list[dict[str, Any]]:
    """The texts, the best first; see `geep_triton.serving.bodies.Rank`.

    Args:
        found: the order of the texts.
        raw: give the logits, not their sigmoid.
        texts: sent with their scores; None: they are not.
    """
    scores = (found.logits if raw else torch.sigmoid(found.logits)).tolist()
    ranks: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in found.order.tolist()]
    return ranks if texts is None else [rank | {"text": texts[rank["index"]]} for rank in ranks]
