"""A ceiling of speed: word counts and a linear model, fitted to the full model's answers, in no time and with other answers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from bench.pipeline.rivals_dense import answers
from geep_triton import MultiExitBert, Predictions


class TfIdf:
    """scikit-learn's tf-idf of words and of pairs of words, and its logistic regression.

    Args:
        model: whose answers it imitates.
        rows: texts that are not timed.
        labels: [N] the model's answers to them.
    """

    def __init__(self, model: MultiExitBert, rows: Sequence[dict[str, Any]], labels: torch.Tensor) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        self._model = model
        self._fitted = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10.0))
        self._fitted.fit(_texts(rows), labels.numpy())

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`, after no layer; classes that it has not met are never its answer."""
        start = time.perf_counter()
        found = torch.from_numpy(self._fitted.predict_log_proba(_texts(rows))).float()
        logits = found.new_full((len(rows), self._model.config.num_labels), -1e4)
        logits[:, torch.from_numpy(self._fitted.classes_)] = found
        return answers(self._model, logits, torch.zeros(len(rows), dtype=torch.int64), {"run": time.perf_counter() - start})


def _texts(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{row['text']} {row.get('text_pair', '')}" for row in rows]
