"""Pools differences over data sets, seeds and rows, and says what a test could have shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy import stats

from bench.claims.metrics import Interval, resampled_means

RESAMPLES = 10_000


@dataclass(frozen=True)
class Pooled:
    """The mean difference over data sets.

    Attributes:
        of_all: over all data sets. Its interval draws data sets, seeds and rows; of data sets one less than there are, since
            the mean of as many would vary too little (Rao and Wu 1988).
        each: of each data set. Its interval draws seeds and rows.
        error: standard deviation of the mean over all resamples.
    """

    of_all: Interval
    each: tuple[Interval, ...]
    error: float


def pooled(differences: Sequence[np.ndarray], confidence: float, resamples: int = RESAMPLES, seed: int = 0) -> Pooled:
    """Pool the differences of two methods.

    Args:
        differences: of each data set [R, N], of R seeds and N rows, of one method less another.
        confidence: of each bound alone (one-sided).
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: there is no data set.
    """
    if not differences:
        raise ValueError("differences must be of at least one data set")
    random, count = np.random.default_rng(seed), len(differences)
    # A data set that is drawn several times draws its seeds and rows each time anew.
    draws = max(1, count - 1)
    copies = np.stack([[resampled_means(one, resamples, random) for _ in range(draws)] for one in differences])
    drawn = random.integers(count, size=(draws, resamples))
    means = copies[drawn, np.arange(draws)[:, None], np.arange(resamples)].mean(0)
    estimates = [float(one.mean()) for one in differences]
    each = tuple(_interval(estimate, copies[index, 0], confidence) for index, estimate in enumerate(estimates))
    return Pooled(_interval(float(np.mean(estimates)), means, confidence), each, float(means.std()))


def _interval(estimate: float, means: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(means, [1 - confidence, confidence]).tolist()
    return Interval(estimate, low, high)


def power(error: float, margin: float, confidence: float, difference: float = 0.0) -> float:
    """With what probability a lower bound lies above minus the margin.

    Args:
        error: standard deviation of the estimate.
        margin: that may be lost.
        confidence: of the bound (one-sided).
        difference: that there really is.
    """
    normal = NormalDist()
    if error == 0:
        return float(difference > -margin)
    return normal.cdf((margin + difference) / error - normal.inv_cdf(confidence))


def sign_flip(differences: Sequence[float]) -> float:
    """Exact two-sided p value of a mean of 0 if each difference could as well have the other sign; 1 of a single one."""
    if len(differences) < 2:
        return 1.0
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return float(test.pvalue)
