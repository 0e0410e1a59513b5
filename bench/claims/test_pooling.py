"""Pooled differences, and what a test could have shown."""

from __future__ import annotations

import numpy as np
import pytest

from bench.claims.pooling import pooled, power, sign_flip


def test_one_data_set_is_its_own_bootstrap():
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=(1, 4_000), p=[0.1, 0.78, 0.12])
    found = pooled([differences], 0.95)
    error = differences.std() / 4_000**0.5
    assert found.of_all.estimate == differences.mean() == found.each[0].estimate
    assert found.error == pytest.approx(error, rel=0.03)
    assert found.of_all.low == pytest.approx(differences.mean() - 1.645 * error, abs=0.1 * error)
    assert found.of_all.high == pytest.approx(differences.mean() + 1.645 * error, abs=0.1 * error)


def test_data_sets_that_differ_widen_the_interval():
    """Rows say exactly what each data set gives, and data sets disagree."""
    agreeing, differing = ([np.full((2, 50), value) for value in values] for values in ((0.1, 0.1, 0.1), (0.0, 0.1, 0.2)))
    assert pooled(agreeing, 0.95).error == pytest.approx(0, abs=1e-12)
    found = pooled(differing, 0.95)
    assert found.error == pytest.approx(np.std([0.0, 0.1, 0.2], ddof=1) / 3**0.5, rel=0.03)
    assert found.of_all.low < 0.05 < found.of_all.estimate
    assert [one.high - one.low for one in found.each] == pytest.approx([0, 0, 0])


def test_seeds_that_differ_widen_the_interval():
    found = pooled([np.array([[0.0] * 50, [0.2] * 50])], 0.95)
    assert found.error == pytest.approx(0.1 / 2**0.5, rel=0.03)


def test_a_bound_misses_as_seldom_as_it_says():
    """The worst case: data sets differ by more than seeds and rows do. Of 400 draws 20 should miss; 33 are 3 errors more."""
    random, missed = np.random.default_rng(0), 0
    for _ in range(400):
        means = random.normal(0, 0.8, (6, 1)) + random.normal(0, 0.2, (6, 2))
        missed += pooled([np.repeat(of_set[:, None], 2, 1) for of_set in means], 0.95, 400).of_all.low > 0
    assert missed <= 33


def test_nothing_to_pool():
    with pytest.raises(ValueError, match="at least one data set"):
        pooled([], 0.95)


@pytest.mark.parametrize(("margin", "difference"), [(0.0075, 0.0), (0.0, 0.0075)])
def test_power_is_how_often_the_test_says_so(margin, difference):
    """Against a simulation of estimates with a known error."""
    error, normal = 0.004, np.random.default_rng(0)
    bounds = normal.normal(difference, error, 200_000) - 1.6449 * error
    assert power(error, margin, 0.95, difference) == pytest.approx((bounds > -margin).mean(), abs=0.005)


def test_power_without_any_error():
    assert power(0.0, 0.01, 0.95) == 1
    assert power(0.0, 0.0, 0.95) == 0


def test_sign_flip():
    assert sign_flip([0.1]) == 1
    assert sign_flip([0.1, 0.2, 0.3, 0.1]) == pytest.approx(2 / 16)
    assert sign_flip([0.1, -0.1]) == 1
