"""The cheapest rival: a linear classifier of words before the model, in which every text that it is sure of stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from geep_triton.tokens.columns import Row

ANALYZERS = {"English": ("word", (1, 2)), "Chinese": ("char", (1, 3))}


def words_classifier(train: Sequence[Row], names: Sequence[str], language: str) -> Callable[[Sequence[Row]], torch.Tensor]:
    """Fit a logistic regression over tf-idf.

    Args:
        train: rows to fit.
        names: of the C classes, in order.
        language: a name in `ANALYZERS`.

    Returns:
        A function of N rows to their logits [N, C].
    """
    analyzer, ngrams = ANALYZERS[language]
    model = make_pipeline(
        TfidfVectorizer(analyzer=analyzer, ngram_range=ngrams, sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1_000)
    )
    model.fit(list(map(_joined, train)), [str(row["label"]) for row in train])
    columns = [list(model.classes_).index(name) for name in names]
    return lambda rows: torch.from_numpy(model.predict_log_proba(list(map(_joined, rows)))[:, columns]).float()


def _joined(row: Row) -> str:
    return row["text"] if row.get("text_pair") is None else f"{row['text']} \n {row['text_pair']}"
