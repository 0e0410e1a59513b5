"""Pooled differences, and what a test could have shown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from bench.claims.pooling import pooled, power


def test_one_data_set_is_its_own_bootstrap():
    differences = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=(1, 4_000), p=[0.1, 0.78, 0.12])
    found = pooled([differences], 0.95)
    error = differences.std() / 4_000**0.5
    assert found.of_all.estimate == differences.mean() == found.each[0].estimate
    assert found.errors[0] == pytest.approx(error, rel=0.03)
    assert found.each[0].low == pytest.approx(differences.mean() - 1.645 * error, abs=0.1 * error)
    assert found.each[0].high == pytest.approx(differences.mean() + 1.645 * error, abs=0.1 * error)
    assert (found.of_all.low, found.of_all.high) == (-np.inf, np.inf)  # of other data sets it says nothing


def test_bounds_are_those_of_students_t():
    values = [0.0, 0.1, 0.25, 0.1]
    found = pooled([np.full((2, 50), value) for value in values], 0.95)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (found.of_all.low, found.of_all.high) == pytest.approx((expected.low, expected.high))
    assert [one.high - one.low for one in found.each] == pytest.approx([0] * 4)
    assert found.errors == pytest.approx((0,) * 4)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_seeds_that_differ_widen_a_data_sets_bounds(seeds):
    of_seeds = np.linspace(0, 0.2, seeds)
    found = pooled([of_seeds[:, None].repeat(50, 1)], 0.95)
    assert found.errors[0] == pytest.approx(of_seeds.std(ddof=1) / seeds**0.5, rel=0.05)


@pytest.mark.parametrize("data_sets", [2, 3, 6])
@pytest.mark.parametrize("spread", [0.8, 0.0])
def test_a_bound_misses_as_seldom_as_it_says(data_sets, spread):
    """Data sets that differ by more than seeds and rows do, or not at all. Of 1,000 draws 50 should miss, give or take 7."""
    random, missed = np.random.default_rng(0), 0
    for _ in range(1_000):
        means = random.normal(0, spread, (data_sets, 1)) + random.normal(0, 0.2, (data_sets, 2))
        missed += pooled([np.repeat(of_set[:, None], 2, 1) for of_set in means], 0.95, 10).of_all.low > 0
    assert 29 <= missed <= 71


def test_nothing_to_pool():
    with pytest.raises(ValueError, match="at least one data set"):
        pooled([], 0.95)


@pytest.mark.parametrize(("margin", "difference"), [(0.0075, 0.0), (0.0, 0.0075)])
def test_power_is_how_often_the_test_says_so(margin, difference):
    """Against judging differences as the experiments do: of rows that all seeds share, and of seeds."""
    random, above, errors = np.random.default_rng(0), 0, []
    for _ in range(500):
        of_rows = [random.choice([-0.25, 0.25], (1, rows)) + difference for rows in (900, 1_600, 3_000, 3_000)]
        found = pooled([rows + random.normal(0, 0.002, (3, 1)) for rows in of_rows], 0.95, 100)
        above += found.of_all.low > -margin
        errors.append(found.errors)
    expected = power(np.mean(errors, axis=0), margin, 0.95, difference)
    assert 0.3 < expected < 0.9
    assert above / 500 == pytest.approx(expected, abs=0.06)


def test_power_without_any_error():
    assert power([0.0] * 3, 0.01, 0.95) == 1
    assert power([0.0] * 3, 0.0, 0.95) == 0
    assert power([0.0], 0.01, 0.95) == 0  # a single data set never says so
