"""Claims on skipping and on the speed-up by thresholds, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.claims import arms
from bench.claims.costs import ALL_REDUCTIONS, FULL, PARTS
from bench.claims.design import REDUCTIONS, A, B, D
from bench.claims.saving import (
    Drop,
    chosen_gates,
    drops,
    half_words,
    halves,
    little_is_lost,
    outperforms,
    read_costs,
    read_data_sets,
    skippings,
)
from bench.environment import environment
from bench.report import MOST_LINES, claims
from bench.rows import found, rows_of, save

COMMONEST = {data_set.name: {"commonest": 0.5} for data_set in (*A.data_sets, *B.data_sets, *D.data_sets)}


def right(share: float, seed: int, rows: int = 2_000) -> str:
    return "".join(map(str, (np.random.default_rng(seed).random(rows) < share).astype(int)))


def reached(at: float, last: float = 0.9, first: float = 0.8, within: float = 2.0) -> dict:
    """What a system reaches that scores `at` wherever it saves something."""
    both = {
        part: {
            "last": last, "least": 1.0, "fastest": 11.0, "fastest_score": first, "within_a_point": within,
            "reductions": [1.0], "scores": [last], **{f"at_{reduction:g}": at for reduction in ALL_REDUCTIONS},
        }
        for part in PARTS
    }  # fmt: skip
    both["test"] |= {f"right_at_{reduction:g}": right(at, 7) for reduction in REDUCTIONS}
    return both


def written(folder, data_set: str, arm: str, systems: dict, seeds=(1, 2, 3)):
    """Files as `bench.claims.costs` writes them."""
    for seed in seeds:
        name = f"{data_set}.{arm}.{seed}"
        full = found(FULL, {"score": 0.9, "right": right(0.9, 3)})
        rows = [full, *(found(system, metrics) for system, metrics in systems.items()), found("", {"took": 1.0})]
        save(folder / f"{name}.jsonl", rows_of("claims", name, rows, {}, environment()))


@pytest.fixture
def folder(tmp_path):
    """Results, of which "costs" is there."""
    folder = tmp_path / "costs"
    gates = [arm.name for arm in arms.SKIPPING]
    good = {arms.EXITS.name: reached(0.86, within=1.1), gates[0]: reached(0.87), gates[1]: reached(0.89, within=1.6)}
    for data_set in ("sst2", "snli", "rte"):
        written(folder, data_set, arms.EXITS.name, good)
    written(folder, "ag_news", arms.FASTBERT.name, {"geep": reached(0.85, first=0.78), "words, then full": reached(0.8)})
    written(folder, "cola", arms.GEEP.name, {"geep": reached(0.85, first=0.7)})
    sets = [found(name, metrics | {"rows": {"train": 1, "tune": 1, "test": 1}}) for name, metrics in COMMONEST.items()]
    save(folder / "data_sets.jsonl", rows_of("claims", "data_sets", sets, {}, environment()))
    return folder


def test_the_tuning_rows_choose(folder):
    costs = read_costs(folder)
    assert chosen_gates(costs, "sst2") == arms.SKIPPING[1].name
    assert chosen_gates(costs, "mrpc") is None


def test_what_skipping_loses_and_gains(folder):
    one_of_each = skippings(read_costs(folder), read_data_sets(folder))
    assert [(one.data_set, one.arm, len(one.seeds)) for one in one_of_each] == [
        (name, arms.SKIPPING[1].name, 3) for name in ("sst2", "snli", "rte")
    ]
    lost, small = little_is_lost(one_of_each)
    assert lost.pooled is not None
    assert lost.pooled.of_all.estimate == pytest.approx(-0.01, abs=0.01)
    assert small in ("0 of 3", "3 of 3")
    better = outperforms(one_of_each, 2.5)
    assert better.pooled is not None
    assert better.pooled.of_all.estimate == pytest.approx(0.03, abs=0.01)
    assert better.word == "supported"
    unlearned = [replace(one, informed=False) for one in one_of_each]
    assert little_is_lost(unlearned)[0].word == outperforms(unlearned, 2.0).word == "no data"


def test_the_halves_are_judged_apart(folder):
    both = halves(skippings(read_costs(folder), read_data_sets(folder)), "rte")
    assert both == ([1.1] * 3, [1.6] * 3)
    assert half_words(*both) == ("supported (3 of 3 seeds)", "supported (3 of 3 seeds)")
    assert half_words([1.1, 1.3, 1.3, 1.3, 1.1], [1.6, 1.6, 1.6, 1.6, 1.0])[0] == "not supported (2 of 5 seeds)"
    assert half_words([1.1, 1.3, 1.3, 1.3, 1.1], [1.6, 1.6, 1.6, 1.6, 1.0])[1] == "supported (4 of 5 seeds)"
    assert halves([], "rte") is None


def test_drops(folder):
    found_drops = {one.data_set: one for one in drops(read_costs(folder))}
    assert found_drops["ag_news"] == Drop("ag_news", pytest.approx(0.9), pytest.approx(0.78), 11.0, 3)
    assert found_drops["ag_news"].within
    assert not found_drops["cola"].within
    assert not Drop("cola", 0.0, 0.0, 11.0, 1).within


def test_the_page(folder, tmp_path):
    timed = [found("geep 1", {"texts_per_second": 100.0, "speed_up": 6.5})]
    clock = tmp_path / "clock" / "cola.geep.clock.jsonl"
    save(clock, rows_of("claims clock", "cola.geep.clock", timed, {}, environment()))
    page = claims.page(tmp_path)
    assert page.count("\n") < MOST_LINES
    for words in (
        "| B1 |",
        "| B2 |",
        "**B3**",
        "words, then full",
        "| cola | 3 | 0.900 | 0.700 | 22.2% | 11.0x | 6.5x | no |",
        "no data",
    ):
        assert words in page
    assert "Trained of what is declared: A 0 of" in claims.page(tmp_path / "nothing")
