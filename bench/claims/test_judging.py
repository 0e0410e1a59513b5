"""Verdicts say what they may."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.claims.design import EARLY_EXITS, Claim, cells
from bench.claims.judging import difference, early, judge, read_runs
from bench.claims.records import DIGITS
from bench.environment import environment
from bench.rows import found, rows_of, save

CLAIM = Claim("X", "hypothesis", "ours", "theirs", ("a", "b", "c"), margin=0.0075)


def run(rights: float, rows: int = 4_000, seed: int = 0, last: float = 0.9, exits: int = 7) -> dict:
    """A run whose early exits are right so often, whichever the text."""
    random = np.random.default_rng(seed)
    counts = random.binomial(exits - 1, rights, rows)
    return {
        "metric": "accuracy",
        "by_exit": [rights] * (exits - 1) + [last],
        "early": "".join(DIGITS[count] for count in counts),
    }


def runs_of(ours: float, theirs: float, rows: int = 4_000, seeds: int = 2, last: float = 0.9) -> dict:
    return {
        (name, arm): {seed: run(rights, rows, 100 * seed + 10 * place + offset, last) for seed in range(seeds)}
        for place, name in enumerate(CLAIM.data_sets)
        for offset, (arm, rights) in enumerate((("ours", ours), ("theirs", theirs)))
    }


COMMONEST = dict.fromkeys(CLAIM.data_sets, 0.5)


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [(0.8, 0.8, "supported"), (0.8, 0.7, "supported"), (0.7, 0.8, "refuted"), (0.793, 0.8, "undecided")],
)
def test_words(ours, theirs, word):
    verdict = judge(CLAIM, runs_of(ours, theirs), COMMONEST)
    assert verdict.word == word
    assert verdict.seeds == dict.fromkeys(CLAIM.data_sets, 2)
    assert verdict.power > 0.5


@pytest.mark.parametrize("ours", [0.8, 0.5])
def test_a_test_that_could_not_say_so_says_nothing(ours):
    """Forty rows could not show that the two are equal, so they show nothing else either."""
    verdict = judge(CLAIM, runs_of(ours, 0.8, rows=40), COMMONEST)
    assert verdict.power < 0.5
    assert verdict.word == "too few rows (power)"


def test_a_few_data_sets_or_one_seed_decide_nothing():
    both = {key: value for key, value in runs_of(0.8, 0.7).items() if key[0] != "c"}
    assert judge(CLAIM, both, COMMONEST).word == "too few data sets, rows (power)"
    verdict = judge(CLAIM, runs_of(0.8, 0.7, rows=8_000, seeds=1), COMMONEST)
    assert (verdict.word, verdict.power > 0.5) == ("too few seeds", True)
    alone = {key: value for key, value in runs_of(0.8, 0.7, seeds=1).items() if key[0] == "a"}
    assert judge(CLAIM, alone, COMMONEST).word == "too few data sets, seeds, rows (power)"


def test_data_sets_that_disagree_decide_nothing():
    """Each is clear, so that the rows are many enough; together they say neither."""
    runs = runs_of(0.8, 0.8, rows=16_000)
    runs["a", "ours"] = {seed: run(0.7, 16_000, seed) for seed in range(2)}
    verdict = judge(CLAIM, runs, COMMONEST)
    assert verdict.power > 0.9
    assert verdict.word == "undecided"


def test_a_claim_to_be_better():
    better = replace(CLAIM, margin=0.0)
    words = [judge(better, runs_of(ours, 0.8), COMMONEST).word for ours in (0.81, 0.8, 0.79)]
    assert words == ["supported", "undecided", "refuted"]


def test_a_model_that_learned_nothing_does_not_count():
    verdict = judge(CLAIM, runs_of(0.5, 0.8, last=0.59), COMMONEST)
    assert (verdict.word, verdict.uninformed, verdict.pooled) == ("no data", CLAIM.data_sets, None)


def test_a_model_whose_score_is_no_number_does_not_count():
    assert judge(CLAIM, runs_of(0.8, 0.8, last=float("nan")), COMMONEST).uninformed == CLAIM.data_sets


def test_nothing_is_there():
    assert judge(CLAIM, {}, COMMONEST).word == "no data"
    some = {key: value for key, value in runs_of(0.8, 0.8).items() if key[0] == "a"}
    assert judge(CLAIM, some, COMMONEST).seeds == {"a": 2}
    assert judge(CLAIM, some, {}).word == "no data"  # nothing is known of the data sets yet


def test_differences_are_those_of_shared_seeds():
    ours, theirs = {1: run(0.8), 2: run(0.7)}, {2: run(0.7), 3: run(0.7)}
    assert difference(ours, theirs).shape == (1, 4_000)
    assert not difference(ours, theirs).any()
    assert difference(ours, {3: run(0.7)}) is None


def test_what_early_exits_score():
    assert early({"metric": "accuracy", "by_exit": [0.5] * 3, "early": "021"}).tolist() == [0, 1, 0.5]
    assert early({"metric": "accuracy", "by_exit": [0.5] * 12, "early": "b0"}).tolist() == [1, 0]
    assert early({"metric": "map", "by_exit": [0.5] * 3, "early": "0.25 1"}).tolist() == [0.25, 1]


def test_only_what_is_declared_counts(tmp_path):
    cell = next(iter(cells()))
    metrics = {"by_exit": [0.5, 0.6], "early": "01", "last": "01", "metric": "accuracy"}
    declaration = cell.as_read()
    save(tmp_path / "a.jsonl", rows_of("claims", cell.name, [found("training", metrics)], declaration, environment()))
    assert list(read_runs(tmp_path)) == [(cell.data_set.name, cell.arm.name)]
    other = declaration | {"seed": 99}
    save(tmp_path / "a.jsonl", rows_of("claims", cell.name, [found("training", metrics)], other, environment()))
    assert read_runs(tmp_path) == {}


def test_claims_are_on_cells_that_are_declared():
    there = {(cell.data_set.name, cell.arm.name) for cell in cells()}
    for claim in EARLY_EXITS:
        assert {(name, arm) for name in (*claim.data_sets, *claim.apart) for arm in (claim.method, claim.baseline)} <= there
