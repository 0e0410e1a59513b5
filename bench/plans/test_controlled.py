"""Rules of risk control choose as they say, and ours is the library's."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bench.plans.controlled import ALL_LAYERS, RULES, Drawn, by_betting, by_binomial, by_mapie, measured, on_average
from bench.plans.promised import CONFIDENCE
from bench.plans.record import JUDGE, TABLE
from bench.plans.signals import Texts
from geep_triton.promises.guarantees import betting_p_value, binomial_p_value, boldest_safe

MAPIE = pytest.mark.skipif(importlib.util.find_spec("mapie") is None, reason="needs mapie")


@pytest.fixture
def drawn() -> Drawn:
    """Ten settings, each wrong where the one before is and elsewhere, of 2,000 texts."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.linspace(0.001, 0.05, 10)
    return Drawn(torch.rand(2_000, generator=generator) < rates[:, None], 0.02)


def test_rules_in_sequence_are_the_librarys(drawn):
    counts = drawn.wrong.sum(1).tolist()
    assert by_binomial(drawn) == boldest_safe([binomial_p_value(count, 2_000, 0.02) for count in counts], CONFIDENCE)
    assert by_betting(drawn) == boldest_safe([betting_p_value(wrong, 0.02, CONFIDENCE) for wrong in drawn.wrong], CONFIDENCE)
    assert 0 <= by_betting(drawn) <= by_binomial(drawn) <= on_average(drawn) < 9


@MAPIE
def test_many_tests_at_once_are_more_careful_than_a_sequence(drawn):
    assert 0 <= by_mapie(drawn) <= by_binomial(drawn)


@pytest.mark.parametrize("rule", [name if name != "mapie" else pytest.param(name, marks=MAPIE) for name in RULES])
def test_nothing_is_safe_where_all_is_wrong(rule):
    assert RULES[rule](Drawn(torch.ones(3, 500, dtype=torch.bool), 0.02)) == ALL_LAYERS


@MAPIE
def test_what_is_measured(parts):
    rows = measured(Texts(parts[TABLE]), Texts(parts[JUDGE]), splits=5)
    assert {row.system for row in rows} == {"", *RULES}
    for row in rows[1:]:
        assert 0 <= row.metrics["kept"] <= row.metrics["of"] == 5
        assert 1 <= row.metrics["layers"] <= rows[0].metrics["num_layers"]
        assert 0 <= row.metrics["none_safe"] <= 1
