"""Metrics of answers, per exit and over depth; each equals scikit-learn's or scipy's, which the tests compare with.

Those of logits judge a policy as well: `f1(engine.predict(rows).logits, labels)`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from geep_triton.checks import check_choice, check_int, check_kind, check_number, check_tensor, shorten
from geep_triton.evaluation.predictor import ascending_layers, check_pair, spearman

Metric = Callable[[torch.Tensor, torch.Tensor], float]


def _check_classes(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise TypeError or ValueError unless these are logits [N, C] and int64 labels [N] of those C classes, N at least 1."""
    check_tensor("logits", logits, 2)
    check_tensor("labels", labels, 1, torch.int64)
    if not len(logits) or len(logits) != len(labels):
        raise ValueError(f"labels must be as many as samples, at least one, got {len(labels)} for {len(logits)}")
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise ValueError(f"labels must be 0..{logits.shape[1] - 1}, got {int(labels.min())}..{int(labels.max())}")


def accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of right answers: logits [N, C], labels [N] int64."""
    _check_classes(logits, labels)
    return float((logits.argmax(-1) == labels).double().mean())


def confusion(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[C, C] float64 counts, rows the labels, columns the answers."""
    _check_classes(logits, labels)
    classes = logits.shape[-1]
    return torch.bincount(labels * classes + logits.argmax(-1), minlength=classes**2).view(classes, classes).double()


def f1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """F1 of class 1 where there are two classes, else the mean over the classes that occur (macro); 0 where undefined."""
    counts = confusion(logits, labels)
    sizes = counts.sum(0) + counts.sum(1)
    scores = torch.where(sizes > 0, 2 * counts.diagonal() / sizes.clamp(min=1), 0.0)
    return float(scores[1]) if len(scores) == 2 else float(scores[sizes > 0].mean())


def matthews(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Matthews' correlation of answers and labels (Gorodkin's for several classes), -1..1; 0 where either is constant."""
    counts = confusion(logits, labels)
    total, right = counts.sum(), counts.trace()
    answered, labelled = counts.sum(0), counts.sum(1)
    spread = (total**2 - answered.square().sum()) * (total**2 - labelled.square().sum())
    return float((right * total - answered @ labelled) / spread.sqrt()) if spread > 0 else 0.0


def pearson(scores: torch.Tensor, targets: torch.Tensor) -> float:
    """Pearson's correlation of [N] scores and [N] targets; NaN where either is constant."""
    check_pair("scores", scores, "targets", targets)
    pair = torch.stack([scores.double(), targets.double()])
    return float("nan") if (pair.std(dim=1) == 0).any() else float(torch.corrcoef(pair)[0, 1])


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
    if not (hasattr(questions, "__len__") and hasattr(questions, "__iter__")):
        raise TypeError(f"questions must be a list, got {shorten(questions)} of type {type(questions).__name__}")
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
# Of numbers: scores [N], targets [N] -> number.
SCORE_METRICS: dict[str, Metric] = {"pearson": pearson, "spearman": spearman}


def per_exit(metric: str, exit_logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """A metric at each exit.

    Args:
        metric: of `CLASS_METRICS`, or of `SCORE_METRICS` for regression (C = 1).
        exit_logits: [N, E, C].
        labels: [N] int64 classes, or numbers.

    Raises:
        ValueError: an unknown metric, no samples, lengths that differ, or a metric of classes for a regression and the reverse.
    """
    check_choice("metric", metric, CLASS_METRICS | SCORE_METRICS)
    check_tensor("exit_logits", exit_logits, 3)
    check_tensor("labels", labels, 1)
    if not len(exit_logits) or len(exit_logits) != len(labels):
        raise ValueError(f"labels must be as many as samples, at least one, got {len(labels)} for {len(exit_logits)}")
    if (exit_logits.shape[-1] == 1) != (metric in SCORE_METRICS):
        raise ValueError(f"metric {metric!r} does not go with {exit_logits.shape[-1]} logit(s) a sample")
    if metric in SCORE_METRICS:
        return [SCORE_METRICS[metric](logits[:, 0], labels) for logits in exit_logits.unbind(1)]
    return [CLASS_METRICS[metric](logits, labels) for logits in exit_logits.unbind(1)]


def area_over_depth(values: Sequence[float], exit_layers: Sequence[int]) -> float:
    """Area under a metric over depth, divided by the depth it spans: the mean of the metric from first to last exit.

    Args:
        values: one per exit.
        exit_layers: the exits' layers, ascending.

    Returns:
        By the trapezoid rule; the value itself for a single exit.

    Raises:
        ValueError: lengths that differ, or none.
    """
    if not isinstance(values, (list, tuple)):
        raise TypeError(f"values must be a list of numbers, got {shorten(values)} of type {type(values).__name__}")
    for value in values:
        check_number("each of values", value)
    exit_layers = ascending_layers(exit_layers, len(exit_layers) if isinstance(exit_layers, (list, tuple)) else 0)
    if not values or len(values) != len(exit_layers):
        raise ValueError(f"values must be one per exit, at least one, got {len(values)} for {len(exit_layers)} exits")
    if len(values) == 1:
        return float(values[0])
    depth, area = torch.tensor(exit_layers, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    return float(torch.trapezoid(area, depth) / (depth[-1] - depth[0]))


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval."""

    estimate: float
    low: float
    high: float


def paired_bootstrap(
    first: torch.Tensor, second: torch.Tensor, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of `first - second` on the same samples, with its percentile bootstrap interval.

    Args:
        first, second: [N] scores of two systems on the same samples, such as right or wrong; or one per question. Or [R, N] of
            R runs of each system, run r of both from the same seed: then runs are drawn as well as samples.
        confidence: of the interval, 0..1.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: no samples, shapes that differ, settings out of range.
    """
    for name, value in (("first", first), ("second", second)):
        check_kind(name, value, torch.Tensor)
        if value.is_complex():
            raise TypeError(f"{name} must hold real numbers, got {value.dtype}")
    check_int("seed", seed, 0)
    if first.ndim not in (1, 2) or first.shape != second.shape or not first.numel():
        raise ValueError(
            f"first and second must be of one shape, [N] or [R, N] and not empty, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    check_number("confidence", confidence, 0.0, 1.0)
    check_int("resamples", resamples, 1)
    differences = torch.atleast_2d(first.double() - second.double()).numpy()
    # A resample's mean depends only on how often each column was drawn, and right and wrong give but a few different ones.
    columns, counts = np.unique(differences, axis=1, return_counts=True)
    random, (runs, samples) = np.random.default_rng(seed), differences.shape
    at_once = max(1, 2**22 // len(counts))  # tens of megabytes
    means = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        of_runs = random.multinomial(samples, counts / samples, size) @ columns.T / samples
        means.append((of_runs * random.multinomial(runs, [1 / runs] * runs, size) / runs).sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2]).tolist()
    return Interval(float(differences.mean()), low, high)
