"""An engine's answers as text-embeddings-inference gives them."""

from __future__ import annotations

import torch

from geep_triton.answers import LabelSet, OneClass
from geep_triton.engine.predictions import Predictions
from geep_triton.engine.ranking import Ranking
from geep_triton.serving.bodies import Prediction, Rank


def predictions_of(found: Predictions, raw: bool) -> list[list[Prediction]]:
    """For each input a score for each label, the highest first.

    Scores are probabilities: by softmax over classes, by a sigmoid for label sets and for one score, also for that of a
    regression, as there.

    Args:
        found: the answers to N inputs.
        raw: give the logits.
    """
    answers = found.answers
    scores = found.logits
    if not raw:
        scores = found.probabilities if isinstance(answers, (OneClass, LabelSet)) else found.logits.sigmoid()
    order = scores.argsort(dim=-1, descending=True, stable=True).tolist()
    return [
        [Prediction(score=row[index], label=found.id2label[index]) for index in best]
        for row, best in zip(scores.tolist(), order, strict=True)
    ]


def ranks_of(found: Ranking, raw: bool) -> list[Rank]:
    """The texts, the best first.

    Args:
        found: the order of the texts; their documents are sent where it holds them.
        raw: give the logits, not their sigmoid.
    """
    scores = (found.logits if raw else torch.sigmoid(found.logits)).tolist()
    texts = found.documents
    return [
        Rank(index=index, score=scores[index], text=None if texts is None else texts[index]) for index in found.order.tolist()
    ]
