"""Rankings: promises on recorded exits, and reranking with the tiny model."""

from __future__ import annotations

import pytest
import torch

from bench.answers.promised import TOP_K
from bench.answers.ranking import boldest, judged, mean_reciprocal_rank, record_of, reranked, simulated
from geep_triton import Engine
from geep_triton.answers import Score
from geep_triton.engine.ranking import Ranking
from geep_triton.policies.ranking import RankPolicy

QUERIES, CANDIDATES = 300, 12


@pytest.fixture
def record():
    """Scores that come nearer to the last exit's."""
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(QUERIES * CANDIDATES, 1, 1, generator=generator)
    noise = torch.linspace(1, 0, 4)[None, :, None] * torch.randn(QUERIES * CANDIDATES, 4, 1, generator=generator)
    return record_of(full + 0.3 * noise, [1, 2, 3, 4], CANDIDATES)


def test_a_ranking_is_judged_by_sets_of_first_candidates(record):
    policy = RankPolicy(TOP_K, {2: 0.1})
    kept, mean_layers = judged(record, policy)
    second, last = (record.logits[:, exit_].view(QUERIES, CANDIDATES) for exit_ in (1, 3))
    stays = second >= second.topk(TOP_K).values[:, -1:] - 0.1
    best = last.topk(TOP_K).indices
    assert kept == pytest.approx(float(stays.gather(1, best).all(1).double().mean()))
    assert mean_layers == pytest.approx(float(torch.where(stays, 4.0, 2.0).mean()))
    assert 0 < kept < 1
    assert judged(record, None) == (1.0, 4.0)


def test_calibrations_on_records(record):
    assert judged(record, boldest(record))[1] < 4
    facts, held_out, splits, population = simulated(record, draws=10)
    assert facts.metrics == {"texts": QUERIES * CANDIDATES, "queries": QUERIES, "num_layers": 4}
    assert held_out.metrics["family"] == "margins"
    assert 0.85 < held_out.metrics["kept"] <= 1
    assert splits.metrics["draws"] == population.metrics["draws"] == 10
    assert population.metrics["broken"] <= 3  # more are broken in one of a thousand times, if each is with 5 %
    assert population.metrics["mean_layers"] < 4


def test_reranking(make_model, tokenizer, many):
    model = make_model(num_labels=1, problem_type="multi_label_classification", pooling="mean")
    queries = [many[12 * index : 12 * index + 12] for index in range(30)] * 8
    rows = [
        [{"text": group[0], "text_pair": text, "label": str(int(place == 1))} for place, text in enumerate(group[2:])]
        for group in queries
    ]
    facts, measured = reranked(Engine(model, tokenizer, "full"), rows, top_k=3, rounds=1)
    assert facts.metrics == {"queries": 120, "candidates": 10, "top_k": 3, "num_layers": 4}
    assert 0.8 < measured.metrics["kept"] <= 1
    assert measured.metrics["mean_layers"] <= 4
    assert measured.metrics["speed_up"] > 0
    assert 0 <= measured.metrics["mrr"] <= 1


def test_reciprocal_ranks():
    def ranking(*order):
        return Ranking(torch.tensor(order), torch.zeros(4), torch.ones(4, dtype=torch.int64), Score({0: "x"}))

    relevant = [[False, True, False, False], [False] * 4, [True, False, False, False]]
    assert mean_reciprocal_rank([ranking(2, 1), ranking(0, 1), ranking(1, 2)], relevant) == pytest.approx(0.5 / 2)
