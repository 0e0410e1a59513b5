"""Metrics against scikit-learn and scipy, or against hand calculations if those have none."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sklearn

from bench.claims.metrics import (
    accuracy,
    f1,
    matthews,
    per_exit,
    ranking,
    spearman,
)
from bench.claims.predictor_report import predictor_report


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("samples", [1, 2, 50])
def test_class_metrics_equal_scikit_learn(classes, samples):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(samples, classes, generator=generator)
        labels = torch.randint(classes, (samples,), generator=generator)
        answers = logits.argmax(-1)
        assert accuracy(logits, labels) == pytest.approx(sklearn.accuracy_score(labels, answers))
        average = "binary" if classes == 2 else "macro"
        assert f1(logits, labels) == pytest.approx(sklearn.f1_score(labels, answers, average=average, zero_division=0.0))
        assert matthews(logits, labels) == pytest.approx(sklearn.matthews_corrcoef(labels, answers), abs=1e-12)


@pytest.mark.parametrize("metric", [accuracy, f1, matthews])
@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([[0], [1]]), ValueError, r"labels must have 1 dimension\(s\), got shape \(2, 1\)"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), ValueError, "labels must be 0..2, got 0..3"),
        (torch.zeros(2, 3), torch.tensor([-1, 0]), ValueError, "labels must be 0..2, got -1..0"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), TypeError, "labels must be of dtype torch.int64"),
        (torch.zeros(0, 3), torch.tensor([], dtype=torch.int64), ValueError, "at least one, got 0 for 0"),
        (torch.zeros(2), torch.tensor([0, 1]), ValueError, "logits must have 2 dimension"),
    ],
)
def test_bad_classes(metric, logits, labels, error, message):
    with pytest.raises(error, match=message):
        metric(logits, labels)


def test_constant_answers_have_no_correlation():
    logits = torch.tensor([[1.0, 0.0]] * 4)
    assert matthews(logits, torch.tensor([0, 0, 1, 1])) == 0.0
    assert f1(logits, torch.tensor([0, 0, 1, 1])) == 0.0


def test_correlations_equal_scipy():
    x = torch.randn(40).round(decimals=1)
    y = x + torch.randn(40)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-6)
    assert math.isnan(spearman(torch.ones(3), torch.arange(3)))


def test_ranking_equals_scikit_learn():
    """Average precision and reciprocal rank per question, questions shuffled among each other."""
    scores, labels = torch.randn(200), (torch.rand(200) < 0.2).long()
    questions = torch.randint(30, (200,)).tolist()
    precisions, reciprocals = [], []
    for question in set(questions):
        rows = [i for i, q in enumerate(questions) if q == question]
        if labels[rows].any():
            precisions.append(sklearn.average_precision_score(labels[rows], scores[rows]))
            # With one right answer, the best ranked, average precision is the reciprocal rank.
            first = max((i for i in rows if labels[i]), key=lambda i: scores[i])
            reciprocals.append(
                sklearn.label_ranking_average_precision_score([[i == first for i in rows]], [scores[rows].tolist()])
            )
    got = ranking(scores, labels, questions)
    assert got.mean_average_precision == pytest.approx(np.mean(precisions))
    assert got.mean_reciprocal_rank == pytest.approx(np.mean(reciprocals))
    assert len(got.average_precisions) == len(precisions) < 30


def test_ranking_gains_nothing_from_ties():
    got = ranking(torch.zeros(4), torch.tensor([1, 0, 0, 0]), ["a"] * 4)
    assert got.mean_reciprocal_rank == got.mean_average_precision == 0.25


def test_ranking_refuses_what_it_cannot_judge():
    for scores, labels, questions, message in (
        (torch.zeros(2), torch.tensor([0, 2]), "ab", r"labels must be 0 or 1, got \[0, 2\]"),
        (torch.zeros(2), torch.tensor([0, 0]), "ab", "no question has a right answer"),
        (torch.zeros(3), torch.tensor([0, 1]), "ab", "must be as many, got 3, 2, 2"),
    ):
        with pytest.raises(ValueError, match=message):
            ranking(scores, labels, questions)


def test_per_exit():
    logits, labels = torch.randn(20, 3, 2), torch.randint(2, (20,))
    assert per_exit("accuracy", logits, labels) == [accuracy(logits[:, k], labels) for k in range(3)]
    for arguments, message in (
        (("recall", logits, labels), "unknown metric 'recall'; known: accuracy, f1, matthews"),
        (("f1", logits[..., :1], torch.ones_like(labels)), "labels must be 0..0, got 1..1"),
        (("accuracy", logits[:0], labels[:0]), "at least one, got 0 for 0"),
        (("f1", logits, labels[:3]), "got 3 for 20"),
    ):
        with pytest.raises(ValueError, match=message):
            per_exit(*arguments)


LOGITS, LABELS, EXITS = torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.randn(4, 2, 2)
LAYERS = torch.tensor([1, 2, 1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spearman("x", LOGITS[:, 0]), TypeError, r"x must be a torch\.Tensor"),
        (lambda: spearman(LOGITS[:, 0], LOGITS[:2, 0]), ValueError, "x and y must be of one length, got 4 and 2"),
        (lambda: spearman(LOGITS, LOGITS[:, 0]), ValueError, "x must have 1 dimension"),
        (lambda: per_exit("accuracy", EXITS, None), TypeError, r"labels must be a torch\.Tensor"),
        (lambda: per_exit([], EXITS, LABELS), ValueError, r"unknown metric \[\]"),
        (lambda: ranking(LOGITS[:, 0], LABELS, [[]] * 4), TypeError, r"each of questions must be hashable, got \[\]"),
        (lambda: per_exit("accuracy", None, LABELS), TypeError, r"exit_logits must be a torch\.Tensor"),
        (lambda: predictor_report(EXITS, LABELS, LAYERS, LAYERS, []), ValueError, "exit_layers must be 2, one per exit"),
        (lambda: predictor_report(EXITS, LABELS, LAYERS, LAYERS, "12"), TypeError, "exit_layers must be a list of ints"),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
