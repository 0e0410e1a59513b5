"""Metrics of answers, per exit. Most are scikit-learn's and scipy's, from logits. Rankings and intervals are our own.

With our ranking, ties gain nothing, unlike with scikit-learn's average precision. Our intervals resample runs as well as
samples, which scipy's bootstrap cannot.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from geep_triton.checks import check_choice, check_int, check_tensor, shorten

Metric = Callable[[torch.Tensor, torch.Tensor], float]


def _answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[N] int64. Raises TypeError or ValueError unless logits are [N, C] and labels int64 [N] of those classes, N above 0."""
    check_tensor("logits", logits, 2)
    check_tensor("labels", labels, 1, torch.int64)
    if not len(logits) or len(logits) != len(labels):
        raise ValueError(f"labels must be as many as samples, at least one, got {len(labels)} for {len(logits)}")
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels must be 0..{logits.shape[1] - 1}, got {int(labels.min())}..{int(labels.max())}")
    return logits.argmax(-1)


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers: logits [N, C], labels [N] int64."""
    return float((_answers(logits, labels) == labels).double().mean())


def f1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """F1 of class 1 where there are two classes, else the mean over the classes that occur (macro); 0 where undefined."""
    average = "binary" if logits.shape[-1] == 2 else "macro"
    return float(f1_score(labels, _answers(logits, labels), average=average, zero_division=0.0))


def matthews(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Matthews' correlation of answers and labels, -1..1; 0 where either is constant."""
    answers = _answers(logits, labels)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A single label was found")
        return float(matthews_corrcoef(labels, answers))


def spearman(x: torch.Tensor, y: torch.Tensor) -> float:
    """Spearman's rank correlation of two [N] tensors, ties at their mean rank; NaN where either is constant."""
    for name, value in (("x", x), ("y", y)):
        check_tensor(name, value, 1)
    if len(x) != len(y):
        raise ValueError(f"x and y must be of one length, got {len(x)} and {len(y)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(x.numpy(), y.numpy()).statistic)


@dataclass(frozen=True)
class Ranking:
    """Answer selection, judged per question; those with no right answer at all are left out, as TREC's evaluation does.

    Attributes:
        average_precisions: of each question, in the order in which they first come.
        reciprocal_ranks: likewise.
    """

    average_precisions: tuple[float, ...]
    reciprocal_ranks: tuple[float, ...]

    @property
    def mean_average_precision(self) -> float:
        """MAP."""
        return sum(self.average_precisions) / len(self.average_precisions)

    @property
    def mean_reciprocal_rank(self) -> float:
        """MRR."""
        return sum(self.reciprocal_ranks) / len(self.reciprocal_ranks)


def ranking(scores: torch.Tensor, labels: torch.Tensor, questions: Sequence[Hashable]) -> Ranking:
    """MAP and MRR of candidates ranked by score within their question.

    Args:
        scores: [N], higher first; candidates of equal score count as if the wrong ones came first.
        labels: [N] int64, 1 for a right answer, 0 for a wrong one.
        questions: [N], what a candidate is an answer to, in any order.

    Raises:
        ValueError: lengths that differ, labels other than 0 and 1, or no question with a right answer.
    """
    check_tensor("scores", scores, 1)
    check_tensor("labels", labels, 1, torch.int64)
    for question in questions:
        if not isinstance(question, Hashable):
            raise TypeError(f"each of questions must be hashable, got {shorten(question)}")
    if not len(scores) == len(labels) == len(questions):
        raise ValueError(f"scores, labels and questions must be as many, got {len(scores)}, {len(labels)}, {len(questions)}")
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()))}")
    candidates: dict[Hashable, list[tuple[float, int]]] = {}
    for question, score, label in zip(questions, scores.tolist(), labels.tolist(), strict=True):
        candidates.setdefault(question, []).append((-score, label))
    precisions, reciprocals = [], []
    for found in candidates.values():
        ranks = [rank for rank, (_, label) in enumerate(sorted(found), start=1) if label]
        if ranks:
            precisions.append(sum(right / rank for right, rank in enumerate(ranks, start=1)) / len(ranks))
            reciprocals.append(1 / ranks[0])
    if not precisions:
        raise ValueError("no question has a right answer")
    return Ranking(tuple(precisions), tuple(reciprocals))


# Of classes: logits [N, C], labels [N] int64 -> number, higher is better.
CLASS_METRICS: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "matthews": matthews}


def per_exit(metric: str, exit_logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """A metric of `CLASS_METRICS` at each exit: logits [N, E, C], labels [N] int64."""
    check_choice("metric", metric, CLASS_METRICS)
    check_tensor("exit_logits", exit_logits, 3)
    return [CLASS_METRICS[metric](logits, labels) for logits in exit_logits.unbind(1)]


def ascending_layers(exit_layers: Sequence[int], exits: int) -> list[int]:
    """The exits' layers as a list. Raise TypeError unless they are ints, ValueError unless ascending, one per exit."""
    if not isinstance(exit_layers, (list, tuple)):
        raise TypeError(f"exit_layers must be a list of ints, got {shorten(exit_layers)} of type {type(exit_layers).__name__}")
    for layer in exit_layers:
        check_int("each of exit_layers", layer, 1)
    if len(exit_layers) != exits or list(exit_layers) != sorted(set(exit_layers)):
        raise ValueError(f"exit_layers must be {exits}, one per exit, ascending, got {list(exit_layers)}")
    return list(exit_layers)


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def resampled_means(differences: np.ndarray, resamples: int, random: np.random.Generator) -> np.ndarray:
    """[resamples] means of `differences` [R, N], with runs and samples drawn anew for each.

    Of R runs R - 1 are drawn, since the mean of R of them would vary too little (Rao and Wu 1988). A single one does not vary.
    """
    # A resample's mean depends only on how often each column was drawn, and right and wrong give but a few different ones.
    columns, counts = np.unique(differences, axis=1, return_counts=True)
    runs, samples = differences.shape
    draws = max(1, runs - 1)
    at_once = max(1, 2**22 // len(counts))  # tens of megabytes
    means = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        of_runs = random.multinomial(samples, counts / samples, size) @ columns.T / samples
        means.append((of_runs * random.multinomial(draws, [1 / runs] * runs, size) / draws).sum(1))
    return np.concatenate(means)
