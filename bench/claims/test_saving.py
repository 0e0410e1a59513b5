"""Claims on skipping and on the speed-up by thresholds, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.claims import arms
from bench.claims.costs import ARMS, declaration_of, known_sets
from bench.claims.design import REDUCTIONS, A, B, Cell, D
from bench.claims.saving import (
    Drop,
    Half,
    chosen_gates,
    drops,
    half_words,
    halves,
    little_is_lost,
    outperforms,
    read_costs,
    read_data_sets,
    skippings,
    within_word,
)
from bench.claims.sets import SETS
from bench.claims.systems import ALL_REDUCTIONS, FULL
from bench.environment import environment
from bench.report import MOST_LINES, claims
from bench.report.claims_flops import equal_flops_section
from bench.rows import found, rows_of, save

FACTS = {"commonest": 0.5, "commonest_share": 0.5, "rows": {"train": 1, "tune": 1, "test": 1}}
GATES = [arm.name for arm in arms.SKIPPING]
ROWS = 3_000


def right(share: float) -> str:
    """So many right answers, the first ones."""
    return "1" * round(share * ROWS) + "0" * (ROWS - round(share * ROWS))


def reached(at: float, first: float = 0.8, tuned: tuple[float, float] | None = (2.0, 0.9), tune: float = 0.5) -> dict:
    """What a system reaches that scores `at` wherever it saves something.

    Args:
        at: of the test rows.
        first: score of the first exit.
        tuned: reduction and score at the threshold that the tuning rows choose.
        tune: score on the tuning rows at 2 times fewer FLOPs.
    """
    test = {"last": 0.9, "least": 1.0, "fastest": 11.0, "fastest_score": first}
    test |= {f"at_{reduction:g}": at for reduction in ALL_REDUCTIONS}
    test |= {f"right_at_{reduction:g}": right(at) for reduction in REDUCTIONS}
    chosen = {} if tuned is None else {"tuned": {"threshold": 0.5, "reduction": tuned[0], "score": tuned[1]}}
    return {"test": test, "tune": {"at_2": tune}, **chosen}


def written(folder, data_set: str, full: str, systems: dict, seeds=(1, 2, 3), limit=None):
    """Files as `bench.claims.costs` writes them, one for each model, instead of all SmartBERTs' that are there."""
    for seed in seeds:
        for other in folder.glob(f"{data_set}.smartbert-*.{seed}.jsonl") if full == arms.EXITS.name else ():
            other.unlink()
        for arm in dict.fromkeys((full, *(system for system in systems if system in ARMS))):
            cell = Cell(SETS[data_set], ARMS[arm], seed)
            rows = [found(arm, systems[arm])] if arm in systems else []
            if arm == full:
                rows.append(found(FULL, {"score": 0.9, "tune": 0.9, "right": right(0.9)}))
                rows += [found(system, metrics) for system, metrics in systems.items() if system not in ARMS]
            declaration = declaration_of(cell, ARMS[full], limit)
            rows = rows_of("claims", cell.name, [*rows, found("", {"took": 1.0})], declaration, environment())
            save(folder / f"{cell.name}.jsonl", rows)


def data_sets(folder, limit=None, **changes):
    known = {one.name: FACTS for one in (*A.data_sets, *B.data_sets, *D.data_sets)}
    sets = [found(name, facts | changes.get(name, {})) for name, facts in known.items()]
    save(folder / "data_sets.jsonl", rows_of("claims", "data_sets", sets, known_sets(limit), environment()))


@pytest.fixture
def folder(tmp_path):
    """Results, of which "costs" is there."""
    folder = tmp_path / "costs"
    systems = {
        arms.EXITS.name: reached(0.86, tuned=(1.1, 0.89)),
        GATES[0]: reached(0.95, tune=0.6),  # better on the test rows, which may not choose
        GATES[1]: reached(0.89, tuned=(1.6, 0.895), tune=0.7),
    }
    for data_set in ("sst2", "snli", "rte"):
        written(folder, data_set, arms.EXITS.name, systems)
    geep = reached(0.85, first=0.78)
    geep["test"]["at_6"] = None
    written(folder, "ag_news", "fastbert", {"fastbert": reached(0.87), "geep": geep, "words, then full": reached(0.8)})
    written(folder, "sst2", "fastbert", {"fastbert": reached(0.81)})
    written(folder, "cola", "geep", {"geep": reached(0.85, first=0.7)})
    data_sets(folder)
    return folder


def test_the_tuning_rows_choose(folder):
    costs = read_costs(folder)
    assert chosen_gates(costs, "sst2") == GATES[1]
    assert chosen_gates(costs, "mrpc") is None
    written(folder, "sst2", arms.EXITS.name, {GATES[0]: reached(0.9, tune=0.6), GATES[1]: {"tune": {"at_2": None}}}, (1,))
    assert chosen_gates(read_costs(folder), "sst2") == GATES[0]


def test_only_costs_of_what_is_declared_count(folder, monkeypatch):
    written(folder, "mrpc", "exits", {GATES[0]: reached(0.9)}, (1,), limit=5)
    assert ("mrpc", "exits") not in read_costs(folder)
    other = replace(arms.GEEP, steps=(replace(arms.GEEP.steps[0], epochs=9.0),))
    monkeypatch.setitem(ARMS, "geep", other)
    costs = read_costs(folder)
    assert set(costs) == {(name, "exits") for name in ("sst2", "snli", "rte")} | {
        (name, "fastbert") for name in ("sst2", "ag_news")
    }
    assert set(costs["ag_news", "fastbert"][1]) == {"full", "fastbert", "words, then full"}
    monkeypatch.delitem(ARMS, "geep")
    assert ("cola", "geep") not in read_costs(folder)
    assert read_data_sets(folder)["sst2"]["rows.test"] == 1
    data_sets(folder, limit=5)
    assert read_data_sets(folder) == {}


def test_what_skipping_loses_and_gains(folder):
    there = skippings(read_costs(folder), read_data_sets(folder))
    assert [(one.data_set, one.arm, one.tried, len(one.seeds)) for one in there] == [
        (name, GATES[1], 2, 3) for name in ("sst2", "snli", "rte")
    ]
    lost, small = little_is_lost(there)
    assert lost.pooled is not None
    assert lost.pooled.of_all.estimate == pytest.approx(-0.01)
    assert (lost.word, small) == ("supported", "3 of 3")
    better = outperforms(there, 2.5)
    assert better.pooled is not None
    assert better.pooled.of_all.estimate == pytest.approx(0.03)
    assert better.word == "supported"
    unlearned = [replace(one, informed=False) for one in there]
    assert little_is_lost(unlearned)[0].word == outperforms(unlearned, 2.0).word == "no data"


def test_a_small_loss_on_average_is_not_enough(folder):
    """1.1 points each: above -1.5, but more than a point on all."""
    for name in ("sst2", "snli", "rte"):
        written(folder, name, arms.EXITS.name, {"exits": reached(0.86), GATES[0]: reached(0.889)})
    lost, small = little_is_lost(skippings(read_costs(folder), read_data_sets(folder)))
    assert lost.pooled is not None
    assert lost.pooled.of_all.low > -0.015
    assert (lost.word, small) == ("undecided", "0 of 3")


def test_who_learned_little_does_not_count(folder):
    data_sets(folder, rte={"commonest_share": 0.85}, sst2={"commonest": 0.85})
    there = {one.data_set: one.informed for one in skippings(read_costs(folder), read_data_sets(folder))}
    assert there == {"sst2": True, "snli": True, "rte": False}
    assert halves(skippings(read_costs(folder), read_data_sets(folder)), "rte") is None


def test_a_seed_that_cannot_save_so_much_is_left_out(folder):
    slow = reached(0.89)
    slow["test"]["at_3"] = None
    written(folder, "rte", arms.EXITS.name, {"exits": reached(0.86), GATES[0]: slow}, (2,))
    written(folder, "rte", arms.EXITS.name, {"exits": reached(0.86), GATES[0]: reached(0.89)}, (1, 3))
    there = {one.data_set: list(one.seeds) for one in skippings(read_costs(folder), read_data_sets(folder))}
    assert there["rte"] == [1, 3]


def test_the_halves_are_judged_apart(folder):
    both = halves(skippings(read_costs(folder), read_data_sets(folder)), "rte")
    assert both is not None
    assert [[(one.reduction, round(one.lost, 3)) for one in half] for half in both] == [[(1.1, 0.01)] * 3, [(1.6, 0.005)] * 3]
    assert half_words(*both) == ("3 of 3 seeds, so far", "3 of 3 seeds, so far")
    exits = [Half(reduction, 0.0) for reduction in (1.1, 1.3, 1.3, 1.3, None)]
    skips = [Half(1.6, 0.01), Half(1.6, 0.0), Half(1.5, 0.0), Half(1.6, -0.01), Half(1.6, 0.02)]
    assert half_words(exits, skips) == ("**not supported** (2 of 5 seeds)", "**supported** (4 of 5 seeds)")
    assert half_words(exits, [*skips[:3], Half(None, 0.0), skips[4]])[1] == "**not supported** (3 of 5 seeds)"
    assert halves([], "rte") is None


def test_drops(folder):
    data_sets(folder, ag_news={"commonest_share": 0.85}, cola={"commonest": 0.85})  # cola's is of Matthews' correlation
    written(folder, "yelp_stars", "geep", {"geep": reached(0.85, first=0.78)}, (1, 2))
    found_drops = {one.data_set: one for one in drops(read_costs(folder), read_data_sets(folder))}
    assert found_drops["yelp_stars"] == Drop("yelp_stars", pytest.approx(0.9), pytest.approx(0.78), 11.0, 2, True)
    assert {name: (one.informed, one.within) for name, one in found_drops.items()} == {
        "ag_news": (False, False),
        "yelp_stars": (True, True),
        "cola": (True, False),
    }
    assert not Drop("cola", 0.0, 0.0, 11.0, 1, True).within


def test_ten_data_sets_decide():
    near = Drop("x", 0.9, 0.8, 11.0, 3, informed=True)
    far, unlearned = replace(near, first=0.5), replace(near, informed=False)
    assert within_word([near] * 10 + [far] * 2) == "supported"
    assert within_word([near] * 9 + [far] * 2) == "undecided"
    assert within_word([near] * 9 + [far] * 3) == "not supported"
    assert within_word([near] * 9 + [unlearned] * 3) == "undecided"
    alone = [replace(one, seeds=1) for one in (near, far)]
    assert within_word([near] * 9 + alone[:1]) == within_word([near] * 9 + [far] * 2 + alone[1:]) == "too few seeds"


def test_ways_stand_beside_fastbert_on_the_same_data_sets(folder):
    text = equal_flops_section(read_costs(folder))
    assert "| fastbert | 2 | 3 | -6.0 |" in text
    assert "| geep | 1 | 3 | -5.0 (-3.0) | -5.0 (-3.0) | -5.0 (-3.0) | -5.0 (-3.0) | - |" in text
    assert "Not run yet: `separate`, `joint`, `small2, then full`, `small4, then full`." in text


def test_the_page(folder, tmp_path):
    timed = [found(f"geep {at}", {"texts_per_second": 9.0, "speed_up": speed}) for at, speed in (("0.3", 1.05), ("1", 6.5))]
    declaration = Cell(SETS["cola"], arms.GEEP, 1).declaration()

    def clock(name: str, **changes: object) -> None:
        rows = rows_of("claims clock", f"{name}.geep.clock", timed, declaration | changes, environment())
        save(tmp_path / "clock" / f"{name}.geep.clock.jsonl", rows)

    clock("cola")
    page = claims.page(tmp_path)
    assert page.count("\n") < MOST_LINES
    for words in (
        "| B1 | at 2x little is lost against the full model (at most a point on 3 of 3 data sets; 71% are needed) | -1.0 ",
        "| > -1.5 | 3 | 100% | **supported**, so far |",
        "| not judged |",
        "less than 1.2x: 3 of 3 seeds, so far; 1.10x at -1.0 points",
        "attention-0.0125, of 2",
        "| **attention-0.0125** |",
        "| attention-0.05 |",
        "| cola, Matthews' correlation | 3 | 0.900 | 0.700 | 22.2% | 11.0x | 1.05x | 6.5x | no |",
        "no data",
    ):
        assert words in page
    clock("cola", limit=5)
    clock("odd")
    assert "6.5x" not in claims.page(tmp_path)
    (folder / "cut.jsonl").write_text('{"suite": "claims"')  # by a kill
    (folder / "data_sets.jsonl").unlink()
    assert "no data" in claims.page(tmp_path)
    assert "Trained of what is declared: A 0 of" in claims.page(tmp_path / "nothing")


def test_right_answers_are_counted(folder):
    there = next(one for one in skippings(read_costs(folder), read_data_sets(folder)) if one.data_set == "snli")
    assert there.right("exits", 2.0).shape == (3, ROWS)
    assert np.allclose(there.right(FULL, 2.0).mean(1), 0.9)
