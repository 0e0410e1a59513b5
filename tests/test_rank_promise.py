"""The promise of a ranking: what it simulates is what runs, and it is kept as often as it says."""

from __future__ import annotations

import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton import Engine, MultiExitBert
from geep_triton.engine.ranking import order_of
from geep_triton.policies.ranking import RankPolicy
from geep_triton.promises import ranking as ranking_module
from geep_triton.promises.guarantees import betting_p_value
from geep_triton.promises.rank_margins import settings as learned_settings
from geep_triton.promises.rank_record import RankRecord
from geep_triton.promises.ranking import calibrate_ranking, drops, queries_needed, search
from tests.test_ranking import make_engine, make_groups, scoring  # noqa: F401

LAYERS = (1, 2, 4)


def drawn(queries, most=20, noise=(1.0, 0.5), seed=0):
    """Queries whose early exits give the last exit's score and some noise; half of the candidates may be relevant."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(0, most + 1, (queries,), generator=generator).tolist()
    full = torch.randn(sum(sizes), generator=generator)
    early = [full + scale * torch.randn(len(full), generator=generator) for scale in noise]
    relevances = (full + torch.randn(len(full), generator=generator) > 1).double()
    return RankRecord.of(torch.stack([*early, full], 1), sizes, LAYERS, relevances)


def test_the_simulation_is_what_runs(scoring, tokenizer):  # noqa: F811
    groups = make_groups([9, 0, 20, 1, 14])
    engine = make_engine(scoring, tokenizer)
    pairs = [(query, text) for query, texts in groups for text in texts]
    logits = engine.every_exit(pairs).logits[:, :, 0]
    record = RankRecord.of(logits, [len(texts) for _, texts in groups], scoring.config.exit_layers)
    left_early = 0
    for policy in (RankPolicy(3, {1: 0.31, 2: 0.17}), RankPolicy(1, {3: 0.011}), RankPolicy(5, {1: 0.07, 2: 0.03, 3: 0.02})):
        engine.ranking = policy
        exits = record.simulate(policy)
        found = list(engine.rank_many(groups, policy.top_k))
        assert torch.cat([one.exit_layers for one in found]).tolist() == exits.tolist()
        ranks = record.ranks(exits).split(record.offsets.diff().tolist())
        for one, places in zip(found, ranks, strict=True):
            assert places.argsort()[: policy.top_k].tolist() == one.order.tolist()
        left_early += int((exits < 4).sum())
    assert left_early > 20


VALUES = st.integers(-4, 4).map(float)  # which often tie


@settings(max_examples=60)
@given(
    groups=st.lists(st.lists(st.tuples(VALUES, st.booleans(), st.integers(0, 2)), max_size=7), max_size=5),
    top_k=st.integers(1, 8),
)
def test_losses_equal_a_loop(groups, top_k):
    rows = [row for group in groups for row in group]
    logits = torch.tensor([[0.0, full] for full, _, _ in rows]).reshape(-1, 2)
    relevances = torch.tensor([relevance for _, _, relevance in rows], dtype=torch.float64)
    record = RankRecord.of(logits, [len(group) for group in groups], (1, 4), relevances)
    exits = torch.tensor([4 if kept else 1 for _, kept, _ in rows], dtype=torch.int64)
    loses, ndcg, mrr = (
        record.loses(exits, top_k).tolist(),
        record.ndcg(exits, top_k).tolist(),
        record.mrr(exits, top_k).tolist(),
    )
    assert len(loses) == len(groups)
    for number, group in enumerate(groups):
        wanted = sorted((full for full, _, _ in group), reverse=True)[:top_k]
        given_scores = sorted((full for full, kept, _ in group if kept), reverse=True)[:top_k]
        assert loses[number] == (wanted != given_scores)
        # By the record's own scores of the last exit: the places beyond those that reached it do not matter to `loses`.
        full = torch.tensor([full for full, _, _ in group])
        order = order_of(full, torch.tensor([4 if kept else 1 for _, kept, _ in group], dtype=torch.int64)).tolist()
        gains = [group[one][2] for one in order]
        dcg, ideal = (
            sum(gain / math.log2(place + 2) for place, gain in enumerate(several[:top_k]))
            for several in (gains, sorted(gains, reverse=True))
        )
        assert ndcg[number] == pytest.approx(dcg / ideal if ideal else 0.0)
        first = next((place for place, gain in enumerate(gains[:top_k]) if gain), None)
        assert mrr[number] == pytest.approx(0.0 if first is None else 1 / (first + 1))


def test_nothing_is_lost_at_full_depth():
    record = drawn(30)
    full = torch.full((len(record.logits),), 4)
    assert not record.loses(full, 3).any()
    for name in ("max_ndcg_drop", "max_mrr_drop"):
        assert drops(record, full, 3, name).tolist() == [0.0] * 30
    assert record.ndcg(full, 3).max() > 0.5


def test_settings_grow_bold_and_the_cautious_lose_nothing_they_saw():
    record = drawn(80)
    found = learned_settings(record, 3, 0.1)
    assert len(found) > 15
    costs = [float(record.simulate(policy).double().mean()) for policy in found]
    assert costs[0] > costs[-1] + 0.5
    losses = [int(record.loses(record.simulate(policy), 3).sum()) for policy in found]
    largest = dict.fromkeys(LAYERS[:-1], 0.0)  # shortfall of one of the best
    for logits in record.logits.split(record.offsets.diff().tolist()):
        for exit_, layer in enumerate(LAYERS[:-1]):
            third = logits[:, exit_].topk(min(3, len(logits))).values[-1:]
            best = logits[logits[:, -1].topk(min(3, len(logits))).indices, exit_]
            largest[layer] = max([largest[layer], *(third - best).tolist()])
    cautious = [all(margin >= largest[layer] for layer, margin in policy.margins.items()) for policy in found]
    assert cautious == sorted(cautious, reverse=True)
    assert [loss for loss, careful in zip(losses, cautious, strict=True) if careful] == [0] * sum(cautious)
    assert sum(cautious) > 1
    assert losses[-1] > 20
    for layer in LAYERS[:-1]:
        margins = [policy.margins[layer] for policy in found if layer in policy.margins]
        assert margins == sorted(margins, reverse=True)


def test_no_setting_is_offered_where_stops_cost_more_than_they_save():
    assert learned_settings(drawn(40), 3, 100.0) == []


def test_no_query_with_more_candidates_than_are_wanted():
    assert learned_settings(drawn(40, most=3), 3, 0.1) == []
    assert learned_settings(drawn(40, most=0), 3, 0.1) == []


@pytest.mark.parametrize(("name", "value"), [("same_top_k", 0.9), ("max_ndcg_drop", 0.05), ("max_mrr_drop", 0.05)])
def test_promises_are_broken_no_more_often_than_they_say(name, value):
    """100 calibrations on 120 queries each, with confidence .8, judged by 2,000 other queries."""
    others, broken, early = drawn(2000, seed=1), 0, 0
    for seed in range(100):
        policies, _, boldest = search(drawn(120, seed=seed + 2), 3, (name, value), 0.8, 0.1)
        if boldest is None:
            continue
        early += 1
        exits = others.simulate(policies[boldest])
        if name == "same_top_k":
            broken += float(others.loses(exits, 3).double().mean()) > 1 - value
        else:
            broken += float(drops(others, exits, 3, name).mean()) > value
    assert early > 50
    assert broken <= 100 * 0.2 + 2 * math.sqrt(100 * 0.2 * 0.8)


def test_a_promise_that_no_setting_keeps_is_not_made():
    """Exits of pure noise."""
    record = drawn(200, noise=(100.0, 100.0))
    _, tried, boldest = search(record, 3, ("same_top_k", 0.95), 0.95, 0.1)
    if boldest is not None:
        assert tried[boldest].same_top_k >= 0.95
        assert tried[boldest].mean_layers > 3.5
    assert tried[-1].same_top_k < 0.6
    assert tried[-1].p_value > 0.05


def test_queries_needed():
    assert queries_needed(("same_top_k", 0.95), 0.95) == 2 * 59
    for name in ("max_ndcg_drop", "max_mrr_drop"):
        needed = queries_needed((name, 0.02), 0.95)
        assert 2 * 100 < needed < 2 * 400
        assert betting_p_value(torch.zeros(needed // 2), 0.02, 0.95) <= 0.05
        assert betting_p_value(torch.zeros(needed // 2 - 1), 0.02, 0.95) > 0.05


@pytest.fixture
def speeds(monkeypatch):
    """Queries a second that are "measured"."""
    found = {"full": 100.0, "boldest": 150.0}
    monkeypatch.setattr(
        ranking_module, "speeds_of", lambda engine, policies, groups, top_k, rounds: {name: found[name] for name in policies}
    )
    return found


@pytest.fixture
def engine(scoring, tokenizer):  # noqa: F811
    """Of a model whose exits all read the same states, and so agree well."""
    with torch.no_grad():
        for layer in scoring.bert.encoder.layer[1:]:
            for linear in (layer.attention.output.dense, layer.output.dense):
                linear.weight.mul_(0.03)
        for head in list(scoring.heads.values())[1:]:
            head.load_state_dict(next(iter(scoring.heads.values())).state_dict())
    return make_engine(scoring, tokenizer)


GROUPS = make_groups([12] * 60 + [3] * 20, seed=3)


def test_calibration_takes_the_boldest_that_is_safe(engine, speeds, tmp_path):
    found = calibrate_ranking(engine, GROUPS, top_k=3, same_top_k=0.9, confidence=0.9)
    boldest = found.chosen
    assert boldest.ranking is not None
    assert str(engine.ranking) == engine.model.exit_config.ranking == boldest.ranking
    assert (boldest.p_value <= 0.1, boldest.speed_up, found.full.queries_per_second) == (True, 1.5, 100.0)
    assert boldest in found.tried
    assert "tried" not in repr(found)  # it would fill the screen
    later = found.tried[found.tried.index(boldest) + 1 :]
    assert not later or later[0].p_value > 0.1
    full = [one.order.tolist() for one in Engine(engine.model, engine.tokenizer, "full").rank_many(GROUPS, 3)]
    same = [one.order.tolist() == order for one, order in zip(engine.rank_many(GROUPS, 3), full, strict=True)]
    assert sum(same) / len(same) >= 0.9
    assert json.loads(json.dumps(found.to_dict()))["chosen"]["ranking"] == boldest.ranking
    engine.save_pretrained(tmp_path)
    again = Engine.from_pretrained(tmp_path, runner="torch")
    assert (again.ranking, again.max_length, again.truncation) == (engine.ranking, engine.max_length, engine.truncation)
    with pytest.raises(ValueError, match=r"calibrated in float32, .* calibrate again \(calibrate_ranking"):
        Engine.from_pretrained(tmp_path, dtype="bfloat16")
    assert Engine.from_pretrained(tmp_path, "full", dtype="bfloat16").ranking is None
    assert (
        MultiExitBert.from_pretrained(tmp_path, exit_layers=[2, engine.model.config.num_hidden_layers]).exit_config.ranking
        is None
    )


def test_a_ranking_of_another_length_is_told(engine, speeds):
    calibrate_ranking(engine, GROUPS, top_k=3, same_top_k=0.9, confidence=0.9)
    model, tokenizer = engine.model, engine.tokenizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Engine(model, tokenizer)
        Engine(model, tokenizer, "full", max_length=8)  # named: nobody leaves early
    with pytest.warns(UserWarning, match=f"calibrated with max_length {engine.max_length}, now 8: .* promise does not hold"):
        Engine(model, tokenizer, max_length=8)
    model.exit_config.ranking = "top:3,margins=0.0,layers=2"
    with pytest.warns(UserWarning, match="calibrated with ranking top:3.*, now top:3,margins=0.0,layers=2"):
        Engine(model, tokenizer)


def test_queries_that_come_again_are_told(engine, speeds):
    with pytest.warns(UserWarning, match="only 40 of 80 queries are distinct: a promise takes each for a query of its own"):
        calibrate_ranking(engine, GROUPS[:40] * 2, top_k=3, same_top_k=0.9, confidence=0.9)


def test_full_depth_is_taken_where_nothing_is_faster(engine, speeds):
    speeds["boldest"] = 99.0
    engine.ranking = "top:2,margins=0.1,layers=2"
    found = calibrate_ranking(engine, GROUPS, top_k=3, same_top_k=0.9, confidence=0.9)
    assert (found.chosen, found.chosen.ranking, engine.ranking, engine.model.exit_config.ranking) == (
        found.full,
        None,
        None,
        None,
    )
    assert [setting.speed_up for setting in found.tried if setting.speed_up] == [0.99]


def test_a_model_of_one_exit_ranks_at_full_depth(make_model, tokenizer, speeds):
    engine = make_engine(make_model(num_labels=1, pooling="mean", exit_layers=[4]), tokenizer)
    found = calibrate_ranking(engine, GROUPS, top_k=3, same_top_k=0.9, confidence=0.9)
    assert (found.chosen, found.tried, engine.ranking) == (found.full, (), None)


def test_calibration_need_not_be_saved(engine, speeds):
    calibrate_ranking(engine, GROUPS, top_k=3, same_top_k=0.9, confidence=0.9, save=False)
    assert engine.ranking is not None
    assert engine.model.exit_config.ranking is None


def test_drops_need_relevances_and_speed_is_measured(engine):
    relevances = [[float(index == 0) for index in range(len(texts))] for _, texts in GROUPS]
    found = calibrate_ranking(
        engine, iter(GROUPS), relevances, top_k=3, max_mrr_drop=0.1, confidence=0.9, rounds=1, speed_queries=10
    )
    assert all(setting.drop is not None for setting in found.tried)
    assert found.full.queries_per_second > 0
    assert (found.promise, found.top_k, found.queries, found.dtype) == (("max_mrr_drop", 0.1), 3, 80, "float32")
    measured = [setting for setting in found.tried if setting.queries_per_second is not None]
    assert len(measured) <= 1
    if found.chosen.ranking is not None:
        assert found.chosen == measured[0]
        assert found.chosen.speed_up > 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"same_top_k": None}, ValueError, "needs exactly one of same_top_k, max_ndcg_drop, max_mrr_drop, got 0"),
        ({"max_mrr_drop": 0.1}, ValueError, "needs exactly one of same_top_k, max_ndcg_drop, max_mrr_drop, got 2"),
        ({"same_top_k": 0.2}, ValueError, "same_top_k must be between 0.5 and 0.9999"),
        ({"same_top_k": "x"}, TypeError, "same_top_k must be a number"),
        ({"confidence": 1.0}, ValueError, "confidence must be between 0.5 and 0.9999"),
        ({"top_k": 0}, ValueError, "top_k must be between 1 and"),
        ({"rounds": 0}, ValueError, "rounds must be at least 1"),
        ({"speed_queries": 1.5}, TypeError, "speed_queries must be an int"),
        ({"groups": GROUPS[:40]}, ValueError, "40 queries are too few to promise same_top_k=0.9: at least 44 are needed"),
        ({"groups": "text"}, TypeError, "groups must be an iterable"),
        ({"groups": [*GROUPS, ("good", ["bad", None])]}, ValueError, "candidate 1 of query 80 is None, expected a text"),
        ({"groups": [*GROUPS, ("good", ["bad", ""])]}, ValueError, "candidate 1 of query 80 has an empty text_pair"),
        ({"groups": [*GROUPS, ("good", ["bad " * 100])]}, ValueError, "candidate 0 of query 80 has .* tokens, more than"),
        ({"top_k": 10**30}, ValueError, "top_k must be between 1 and 2147483647"),
        ({"groups": [("a", [])] * 80}, ValueError, "groups: no query has a candidate"),
        ({"same_top_k": None, "max_ndcg_drop": 0.1}, ValueError, "max_ndcg_drop needs relevances; same_top_k needs none"),
        ({"relevances": [[0.0]]}, ValueError, "relevances must be one per candidate of each query, got query 0 has 1 for 12"),
        ({"relevances": [[0.0] * 12] * 60}, ValueError, "relevances must be one per candidate .* got 60 for 80 queries"),
        ({"relevances": [[-1.0] * len(texts) for _, texts in GROUPS]}, ValueError, "relevances must be finite and at least 0"),
        ({"relevances": [["x"] * 12]}, TypeError, "relevances must be a list of numbers for each query"),
        ({"relevances": 3}, TypeError, "relevances must be a list of numbers for each query"),
    ],
)
def test_calibrate_ranking_refuses(engine, changes, error, message):
    arguments = {"groups": GROUPS, "top_k": 3, "same_top_k": 0.9, "confidence": 0.9} | changes
    groups = arguments.pop("groups")
    with pytest.raises(error, match=message):
        calibrate_ranking(engine, groups, **arguments)
    assert engine.ranking is None


def test_other_models_are_refused(model, make_model, tokenizer):
    with pytest.raises(ValueError, match="calibrate_ranking needs a model of score, got one of classes"):
        calibrate_ranking(Engine(model, tokenizer), GROUPS, top_k=3, same_top_k=0.9)
    gated = Engine(make_model(num_labels=1, skip_gate="mean", pooling="mean"), tokenizer)
    with pytest.raises(ValueError, match="cannot leave early where layers are skipped"):
        calibrate_ranking(gated, GROUPS, top_k=3, same_top_k=0.9)
    with pytest.raises(TypeError, match="engine must be a Engine"):
        calibrate_ranking(model, GROUPS, top_k=3, same_top_k=0.9)
