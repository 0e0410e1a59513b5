"""Calibrations on recorded exits choose as the library does, and their promises are counted as they should be."""

from __future__ import annotations

import pytest
import torch

from bench.answers.promised import Promised
from bench.answers.promises import measured
from bench.answers.replay import CONFIDENCE, Replay, from_a_population, splits
from geep_triton import Engine
from geep_triton.engine.predictions import EveryExit
from geep_triton.promises.contenders import Contender, Samples
from geep_triton.promises.families import error_shares, families_of
from geep_triton.promises.search import Search, cells_of
from geep_triton.promises.terms import read_terms
from geep_triton.tokens.ragged import Tokens

TEXTS = 600
SAME_SIDE = Promised("same side", {"agreement": 0.9}, {"decision": 0.0})


def record_of(labels, exits=4, noise=1.5):
    """Exits that come nearer to the last one's answers, and are surer where they are right."""
    generator = torch.Generator().manual_seed(3)
    full = 2 * torch.randn(TEXTS, 1, labels, generator=generator)
    away = torch.linspace(noise, 0, exits)[None, :, None] * torch.randn(TEXTS, exits, labels, generator=generator)
    return EveryExit(Tokens.from_lists([[2, 5, 3]] * TEXTS), full + away)


@pytest.fixture
def scores(make_model):
    return make_model(num_labels=1, problem_type="regression"), record_of(1)


def replay_of(model, record, promised):
    for name in ("decision", "tolerance"):
        setattr(model.exit_config, name, promised.comparison.get(name))
    return Replay(model, record, read_terms(promised.promises, None, model), score_cost=0.05)


@pytest.mark.parametrize(
    ("config", "promised"),
    [
        ({"num_labels": 1, "problem_type": "regression"}, SAME_SIDE),
        ({"num_labels": 1, "problem_type": "regression"}, Promised("near", {"agreement": 0.9}, {"tolerance": 1.0})),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, Promised("set", {"agreement": 0.9})),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, Promised("each", {"label_agreement": 0.9})),
        ({"num_labels": 2}, Promised("recall", {"class_recall": {"LABEL_0": 0.9}})),
    ],
)
def test_each_familys_policy_is_that_of_the_librarys_search(make_model, tokenizer, config, promised):
    model, record = make_model(**config), record_of(config["num_labels"])
    replay = replay_of(model, record, promised)
    families = families_of(model)
    confidences = {("float32", name): 1 - (1 - CONFIDENCE) * share for name, share in error_shares(families).items()}
    engine = Engine(model, tokenizer, "full")
    replay.score_cost = engine.layer_costs.stop_layers
    samples = Samples.shuffled(["a"] * TEXTS, record, None)
    arguments = confidences, replay.terms, "learn-then-test", 1, 1
    search = Search([Contender(engine, record)], samples, cells_of(families, ["float32"]), *arguments)
    indices = {cell: search.choose(cell, search.unfitted[cell], 4.0) for cell in search.policies}
    expected = {cell[1]: search.policies[cell][index] for cell, index in indices.items() if index is not None}
    assert replay.boldest(samples.order) == expected
    assert expected


def test_a_promise_is_broken_where_measured_below(scores):
    replay = replay_of(*scores, SAME_SIDE)
    every = torch.arange(TEXTS)
    first = replay.families[[family.name for family in replay.families].index("constant")].policies(None)[-1]
    scores_of = scores[1].logits[:, :, 0] >= 0
    expected = float((scores_of[:, 0] == scores_of[:, -1]).double().mean())
    assert replay.kept(first, every) == [pytest.approx(expected)]
    assert expected < 0.9
    assert replay.is_broken(first, every)
    assert not replay.is_broken(replay.full, every)
    assert replay.mean_layers(first, every) == 1
    agreeing = (scores_of[:, 0] == scores_of[:, -1]).nonzero()[:, 0]
    assert not replay.is_broken(first, agreeing)


def test_a_promise_of_a_class_is_judged_by_its_texts(make_model):
    record = record_of(2)
    replay = replay_of(make_model(num_labels=2), record, Promised("recall", {"class_recall": {"LABEL_0": 0.9}}))
    first = replay.families[[family.name for family in replay.families].index("constant")].policies(None)[-1]
    answers = record.logits.argmax(-1)
    full = answers[:, -1] == 0
    expected = float((answers[full, 0] == 0).double().mean())
    assert replay.kept(first, torch.arange(TEXTS)) == [pytest.approx(expected)]


def test_many_calibrations_break_few_promises_and_save_layers(scores):
    replay = replay_of(*scores, SAME_SIDE)
    drawn = from_a_population(replay, 20, TEXTS // 2)
    assert len(drawn.broken) == 20
    assert sum(drawn.broken) <= 4  # more are broken in fewer than one of 300 times, if each is with 5 %
    assert max(drawn.mean_layers) < 4
    assert len(set(drawn.mean_layers)) > 1
    halves = splits(replay, 2, TEXTS // 2)
    assert len(halves.broken) == len(halves.mean_layers) == 2


def test_the_rows_of_a_cell(scores):
    rows = measured(*scores, (SAME_SIDE,), draws=2)
    by_system = {row.system: row for row in rows}
    assert list(by_system) == ["", "held out", "splits", "population"]
    assert by_system[""].metrics == {"texts": TEXTS, "num_layers": 4}
    assert by_system["held out"].metrics["promised"] == 0.9
    assert by_system["held out"].metrics["every_promise_kept"] == (by_system["held out"].metrics["kept"] >= 0.9)
    assert by_system["splits"].metrics["draws"] == 2
    assert by_system["splits"].config == {"promise": "same side"}
    assert scores[0].exit_config.decision == 0.0
