"""Pools differences over data sets, seeds and rows, and says what a test could have shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bench.claims.metrics import Interval, resampled_means

RESAMPLES = 10_000


@dataclass(frozen=True)
class Pooled:
    """The mean difference over data sets.

    Attributes:
        of_all: over all data sets. Its bounds are those of Student's t over the data sets' means, in which seeds and rows vary,
            too; infinite for a single one.
        each: of each data set. Its bounds draw seeds and rows.
        errors: standard deviation of each data set's mean, by its seeds and rows.
    """

    of_all: Interval
    each: tuple[Interval, ...]
    errors: tuple[float, ...]


def pooled(differences: Sequence[np.ndarray], confidence: float, resamples: int = RESAMPLES, seed: int = 0) -> Pooled:
    """Pool the differences of two methods.

    Args:
        differences: of each data set [R, N], of R seeds and N rows, of one method less another.
        confidence: of each bound alone (one-sided).
        resamples: bootstrap samples of each data set's seeds and rows.
        seed: of the resampling.

    Raises:
        ValueError: there is no data set.
    """
    if not differences:
        raise ValueError("differences must be of at least one data set")
    random = np.random.default_rng(seed)
    means = [resampled_means(one, resamples, random) for one in differences]
    estimates = np.array([one.mean() for one in differences])
    each = tuple(
        Interval(float(estimate), *np.quantile(drawn, [1 - confidence, confidence]).tolist())
        for estimate, drawn in zip(estimates, means, strict=True)
    )
    low, high = (float(bound) for bound in _bounds(estimates[None], confidence)[:, 0])
    of_all = Interval(float(estimates.mean()), low, high)
    return Pooled(of_all, each, tuple(float(drawn.std()) for drawn in means))


def _bounds(means: np.ndarray, confidence: float) -> np.ndarray:
    """[2, S] lower and upper bounds of the expected mean of each of S samples of K values, [S, K]."""
    count = means.shape[1]
    if count == 1:
        return np.array([[-math.inf], [math.inf]]).repeat(len(means), 1)
    reach = stats.t.ppf(confidence, count - 1) * means.std(1, ddof=1) / count**0.5
    return np.stack([means.mean(1) - reach, means.mean(1) + reach])


def power(
    errors: Sequence[float], margin: float, confidence: float, difference: float = 0.0, draws: int = 20_000, seed: int = 0
) -> float:
    """With what probability the lower bound of a pooled difference lies above minus the margin, by simulation.

    Args:
        errors: standard deviation of each data set's mean.
        margin: that may be lost.
        confidence: of the bound (one-sided).
        difference: that there really is, on each data set alike.
        draws: of the simulation.
        seed: likewise.
    """
    means = np.random.default_rng(seed).normal(difference, errors, (draws, len(errors)))
    return float((_bounds(means, confidence)[0] > -margin).mean())
