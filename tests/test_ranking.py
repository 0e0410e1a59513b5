"""Ranking of candidates against one query and one pair at a time."""

from __future__ import annotations

import functools
import itertools
import math
import random

import pytest
import torch

from geep_triton import Engine, MultiExitBert
from geep_triton.engine import ranker as ranker_module
from geep_triton.engine.costs import LayerCosts
from geep_triton.engine.ranking import order_of
from geep_triton.exit_config import ExitConfig
from geep_triton.policies.ranking import RankPolicy, parse_ranking
from tests.conftest import WORDS


@pytest.fixture
def scoring(make_model):
    """A tiny model of one score, with scores that differ."""
    model = make_model(num_labels=1, pooling="mean")
    with torch.no_grad():
        for head in model.heads.values():
            head.classifier.weight.mul_(4)
    return model


def make_engine(model, tokenizer, **changes):
    """An engine that knows what layers cost without measuring it."""
    engine = Engine(model, tokenizer, **changes)
    engine.layer_costs = LayerCosts(((8, 1e-5), (1024, 1e-3)), 1e-9)
    return engine


def make_groups(sizes, seed=0):
    """Queries with so many candidates, all texts of the tiny vocabulary."""
    chosen = random.Random(seed)
    words = [word for word in WORDS if word.isalpha()]
    draw = lambda most: " ".join(chosen.choices(words, k=chosen.randint(1, most)))  # noqa: E731
    return [(draw(4), [draw(12) for _ in range(size)]) for size in sizes]


@pytest.fixture
def groups():
    return make_groups([7, 0, 1, 30, 3, 12, 0, 25, 2])


@pytest.fixture
def alone(scoring, tokenizer):
    """Gives every exit's logits of a pair that runs alone."""
    engine = make_engine(scoring, tokenizer, policy="full")
    return functools.cache(lambda query, text: engine.every_exit([(query, text)]).logits[0, :, 0].tolist())


def pair_by_pair(alone, query, candidates, policy):
    """Exits and logits as the definition gives them, of pairs that run alone."""
    scores = [alone(query, text) for text in candidates]
    left = dict(enumerate(scores))
    exits = dict.fromkeys(left, 4)
    for layer, margin in {} if policy is None else policy.margins.items():
        now = {one: values[layer - 1] for one, values in left.items()}
        best = sorted(now.values(), reverse=True)[: policy.top_k]
        for one, value in now.items():
            if len(best) == policy.top_k and best[-1] - value > margin:
                exits[one] = layer
                del left[one]
    return [exits[one] for one in range(len(scores))], [scores[one][exits[one] - 1] for one in range(len(scores))]


@pytest.mark.parametrize(
    "ranking",
    [None, "top:3,margins=0.5,layers=2", "top:2,margins=1.0/0.3/0.1,layers=1/2/3", "top:5,margins=0.0/0.0,layers=1/3"],
)
def test_rankings_equal_one_pair_at_a_time(scoring, tokenizer, groups, alone, ranking):
    policy = None if ranking is None else parse_ranking(ranking)
    top_k = None if policy is None else policy.top_k
    for changes in ({}, {"token_budget": 40, "window": 5}, {"token_budget": 3, "in_flight": 3, "prefetch": True}):
        engine = make_engine(scoring, tokenizer, **changes)
        engine.ranking = ranking
        left_early = 0
        found = list(engine.rank_many(iter(groups), top_k))
        assert len(found) == len(groups)
        for (query, candidates), result in zip(groups, found, strict=True):
            exits, logits = pair_by_pair(alone, query, candidates, policy)
            assert result.exit_layers.tolist() == exits
            assert result.logits.tolist() == pytest.approx(logits, abs=1e-5)
            in_order = sorted(range(len(logits)), key=lambda one: (-exits[one], -result.logits[one], one))
            assert result.order.tolist() == in_order[:top_k]
            left_early += sum(layer < 4 for layer in exits)
        assert (left_early > 0) == (ranking is not None)


def test_many_queries_are_ranked_as_each_alone(scoring, tokenizer, groups):
    engine = make_engine(scoring, tokenizer)
    engine.ranking = "top:2,margins=0.4/0.2,layers=1/2"
    for (query, candidates), result in zip(groups, engine.rank_many(groups, 2), strict=True):
        alone = engine.rank(query, candidates, 2)
        assert alone.order.tolist() == result.order.tolist()
        assert alone.exit_layers.tolist() == result.exit_layers.tolist()


def test_an_infinite_margin_is_full_depth(scoring, tokenizer, groups):
    engine = make_engine(scoring, tokenizer)
    full = list(engine.rank_many(groups, 2))
    engine.ranking = RankPolicy(2, {1: math.inf, 2: math.inf})
    for one, other in zip(full, engine.rank_many(groups, 2), strict=True):
        assert one.order.tolist() == other.order.tolist()
        assert other.exit_layers.tolist() == [4] * len(other.logits)
        assert torch.allclose(one.logits, other.logits, atol=1e-5)


def test_who_wants_more_than_the_policy_keeps_gets_full_depth(scoring, tokenizer, groups):
    engine = make_engine(scoring, tokenizer)
    engine.ranking = "top:2,margins=0.0,layers=1"
    query, candidates = groups[3]
    assert engine.rank(query, candidates, 2).mean_layers < 4
    assert engine.rank(query, candidates, 1).mean_layers < 4
    for top_k in (3, None):
        assert engine.rank(query, candidates, top_k).mean_layers == 4
    assert len(engine.rank(query, candidates, 1000)) == len(engine.rank(query, candidates)) == 30
    assert (
        engine.rank(query, candidates).order.tolist()
        == engine.predict([(query, text) for text in candidates]).scores.argsort(descending=True).tolist()
    )


def test_at_least_top_k_reach_the_last_layer(scoring, tokenizer, groups):
    engine = make_engine(scoring, tokenizer)
    engine.ranking = "top:4,margins=0.0/0.0/0.0,layers=1/2/3"
    for (_, candidates), result in zip(groups, engine.rank_many(groups, 4), strict=True):
        deep = (result.exit_layers == 4).sum()
        assert deep >= min(4, len(candidates))
        assert (result.exit_layers[result.order] == 4).all()
        assert len(result) == min(4, len(candidates))


def test_equal_candidates_stay_together_and_keep_their_order(scoring, tokenizer):
    engine = make_engine(scoring, tokenizer)
    engine.ranking = "top:2,margins=0.001/0.001,layers=1/2"  # more than equal texts differ by rounding
    result = engine.rank("the film", ["it was good"] * 5 + ["it was bad"] * 5, 2)
    assert {tuple(result.exit_layers[:5].tolist()), tuple(result.exit_layers[5:].tolist())} == {(1,) * 5, (4,) * 5}
    assert len({one // 5 for one in result.order.tolist()}) == 1
    assert result.exit_layers[result.order].tolist() == [4, 4]


def test_the_order():
    logits, exits = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 3.0]), torch.tensor([4, 2, 4, 4, 1, 2])
    assert order_of(logits, exits).tolist() == [2, 3, 0, 1, 5, 4]
    assert order_of(logits[:0], exits[:0]).tolist() == []


def test_results_are_those_of_a_cross_encoder(scoring, tokenizer):
    engine = make_engine(scoring, tokenizer)
    texts = ["good film", "bad soup", "dull book"]
    result = engine.rank("the film", texts, 2, return_documents=True)
    scores = engine.predict([("the film", text) for text in texts]).scores
    order = scores.argsort(descending=True)[:2].tolist()
    assert result.results() == [
        {"corpus_id": one, "score": pytest.approx(float(scores[one]), abs=1e-6), "text": texts[one]} for one in order
    ]
    assert engine.rank("the film", texts, 2).results()[0].keys() == {"corpus_id", "score"}
    assert result.documents == texts


def test_scores_of_a_logistic_model_are_probabilities(make_model, tokenizer):
    engine = Engine(make_model(num_labels=1, problem_type="multi_label_classification"), tokenizer)
    result = engine.rank("the film", ["good", "bad soup"])
    assert torch.equal(result.scores, result.logits.sigmoid())


def test_without_candidates(scoring, tokenizer):
    engine = make_engine(scoring, tokenizer)
    result = engine.rank("the film", [])
    assert (len(result), result.results(), result.logits.shape, math.isnan(result.mean_layers)) == (0, [], (0,), True)
    assert list(engine.rank_many([])) == []
    assert [len(one) for one in engine.rank_many([("a film", []), ("a soup", [])], 3)] == [0, 0]


def test_queries_are_read_as_they_are_needed(scoring, tokenizer):
    read = []

    def stream():
        for number in itertools.count():
            read.append(number)
            yield "the film", ["good", "bad soup"]

    rankings = make_engine(scoring, tokenizer, window=4, prefetch=False).rank_many(stream())
    for _ in range(3):
        next(rankings)
    assert len(read) == 4


def test_a_round_holds_whole_groups(scoring, tokenizer, groups, monkeypatch):
    """However small: the states of one query's candidates are compared at once."""
    engine = make_engine(scoring, tokenizer, token_budget=20)
    engine.ranking = "top:2,margins=0.3,layers=2"
    expected = [one.exit_layers.tolist() for one in engine.rank_many(groups, 2)]
    monkeypatch.setattr(ranker_module, "ROUND_BATCHES", 0)
    assert [one.exit_layers.tolist() for one in engine.rank_many(groups, 2)] == expected


def test_survivors_are_joined_into_dense_batches(scoring, tokenizer, monkeypatch):
    """20 batches of which few stay run on in far fewer batches."""
    monkeypatch.setattr("geep_triton.engine.costs.LayerCosts.regrouping_pays", lambda self, *given: True)
    engine = make_engine(scoring, tokenizer, token_budget=100)
    engine.ranking = "top:1,margins=0.0,layers=1"
    ran = []
    layers = engine.runner.layers
    monkeypatch.setattr(
        engine.runner, "layers", lambda first, last, states: ran.append((last, len(states))) or layers(first, last, states)
    )
    found = list(engine.rank_many(make_groups([20] * 12), 1))
    before, after = ([count for last, count in ran if last == layer] for layer in (1, 4))
    assert (sum(before), sum(after)) == (240, sum(int((one.exit_layers == 4).sum()) for one in found))
    assert len(before) > 20
    assert len(after) <= 4


def test_gates_skip_at_full_depth_and_refuse_early_exits(make_model, tokenizer, groups):
    model = make_model(num_labels=1, skip_gate="mean", pooling="mean")
    with torch.no_grad():
        for gate in model.gates.values():
            gate.output.weight.normal_()
    engine = make_engine(model, tokenizer)
    pairs = [(groups[3][0], text) for text in groups[3][1]]
    assert torch.allclose(engine.rank(*groups[3]).logits, engine.predict(pairs).logits[:, 0], atol=1e-5)
    engine.ranking = "top:2,margins=0.1,layers=2"
    with pytest.raises(ValueError, match=r"cannot leave early where layers are skipped \(by gates\)"):
        engine.rank(*groups[3], 2)
    engine.policy = "full+skip:never"
    assert len(engine.rank(*groups[3], 2)) == 2


def test_a_score_that_is_no_number_is_refused(scoring, tokenizer, groups, monkeypatch):
    engine = make_engine(scoring, tokenizer)
    logits = engine.runner.logits
    for bad in (2, 4):
        monkeypatch.setattr(
            engine.runner, "logits", lambda layer, states, bad=bad: logits(layer, states) * (math.nan if layer == bad else 1)
        )
        engine.ranking = "top:2,margins=0.1,layers=2"
        with pytest.raises(ValueError, match="NaN or infinite"):
            list(engine.rank_many(groups, 2))
    with pytest.raises(ValueError, match="candidate 0 of query 1 got a score that is NaN or infinite"):
        list(engine.rank_many([("the film", []), *groups[2:]]))
    monkeypatch.undo()
    assert len(engine.rank(*groups[0], 2)) == 2


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda e: e.rank("", ["a"]), ValueError, "candidate 0 of query 0 has an empty text$"),
        (lambda e: e.rank("a film", ["a", " "]), ValueError, "candidate 1 of query 0 has an empty text_pair"),
        (lambda e: e.rank("a film", ["a", None]), ValueError, "candidate 1 of query 0 is None, expected a text"),
        (lambda e: e.rank("a film", ["a", 3]), ValueError, "candidate 1 of query 0 has a text_pair that is not a string: 3"),
        (lambda e: e.rank("a film", "good"), TypeError, "candidates of query 0 must be a list of texts, got 'good'"),
        (lambda e: e.rank("a film", 3), TypeError, "candidates of query 0 must be a list of texts, got 3"),
        (lambda e: e.rank("a film", {"good", "bad"}), TypeError, "candidates of query 0 must be a list of texts, got {"),
        (lambda e: e.rank("a film", b"good"), TypeError, "candidates of query 0 must be a list of texts, got b"),
        (lambda e: e.rank(3, ["a"]), TypeError, "query 0 must be a text, got 3 of type int"),
        (lambda e: e.rank("a", ["b"], 0), ValueError, "top_k must be at least 1, got 0"),
        (lambda e: e.rank("a", ["b"], 1.0), TypeError, "top_k must be an int"),
        (lambda e: e.rank("a", ["b"], return_documents=1), TypeError, "return_documents must be True or False"),
        (lambda e: list(e.rank_many("text")), TypeError, "groups must be an iterable of"),
        (lambda e: list(e.rank_many({"a": ["b"]})), TypeError, "groups must be an iterable of"),
        (lambda e: list(e.rank_many(3)), TypeError, "groups must be an iterable of"),
        (lambda e: list(e.rank_many([("a", ["b"]), "c"])), TypeError, "query 1 must be a tuple"),
        (lambda e: e.rank("was", ["good", "film " * 100]), ValueError, "candidate 1 of query 0 has 10. tokens"),
    ],
)
def test_rank_refuses(scoring, tokenizer, call, error, message):
    engine = make_engine(scoring, tokenizer)
    with pytest.raises(error, match=message):
        call(engine)


def test_a_bad_candidate_is_named_in_any_window(scoring, tokenizer):
    groups = [*make_groups([3, 4, 5]), ("the film", []), ("the soup", ["good", ""])]
    with pytest.raises(ValueError, match="candidate 1 of query 4 has an empty text_pair"):
        list(make_engine(scoring, tokenizer, window=6).rank_many(groups))


def test_a_model_of_classes_cannot_rank(model, tokenizer):
    engine = Engine(model, tokenizer)
    with pytest.raises(ValueError, match="needs a model of one score .* got one of 3 labels"):
        engine.rank("a", ["b"])
    with pytest.raises(ValueError, match="ranking needs a model of score, got one of classes"):
        engine.ranking = "top:2,margins=0.1,layers=2"


TEXT = "top:10,margins=1.5/0.8,layers=2/4"


def test_the_short_form():
    policy = parse_ranking(TEXT)
    assert (policy, str(policy)) == (RankPolicy(10, {2: 1.5, 4: 0.8}), TEXT)
    assert parse_ranking("top:10,layers=4/2,margins=0.8/1.5") == policy
    assert str(RankPolicy(1, {4: 0, 2: math.inf})) == "top:1,margins=inf/0.0,layers=2/4"
    assert parse_ranking("top:1,margins=inf/0.0,layers=2/4") == RankPolicy(1, {4: 0.0, 2: math.inf})
    assert parse_ranking(policy) is policy


@pytest.mark.parametrize(
    "text",
    [
        *("", "top", "top:10", "top:10,margins=1", "top:0,margins=1,layers=2", "top:x,margins=1,layers=2", "full"),
        *("top:1,margins=1/2,layers=2", "top:1,margins=-1,layers=2", "top:1,margins=nan,layers=2", "top:1,margins=,layers="),
        *("top:1,margins=1/1,layers=2/2", "top:1,margins=1,layers=2,more=3", "top:1,margins=1,margins=1,layers=2"),
    ],
)
def test_what_is_no_short_form(text):
    with pytest.raises(ValueError, match="known: top:K,margins"):
        parse_ranking(text)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, {1: 0.5}), ValueError, "top_k must be"),
        ((1, {}), ValueError, "margins must have at least one layer"),
        ((1, [0.5]), TypeError, "margins must map layers to numbers"),
        ((1, {0: 0.5}), ValueError, "each layer of margins must be at least 1"),
        ((1, {1: "x"}), TypeError, "margin of layer 1 must be a number"),
    ],
)
def test_a_rank_policy_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        RankPolicy(*arguments)


def test_a_rank_policy_keeps_a_copy():
    margins = {1: 0.5}
    policy = RankPolicy(1, margins)
    margins[1] = 9.0
    assert policy.margins == {1: 0.5}


def test_ranking_may_be_set_and_is_checked(scoring, tokenizer):
    engine = make_engine(scoring, tokenizer)
    assert engine.ranking is None
    engine.ranking = "top:2,margins=0.1,layers=2"
    for wrong, error, message in (
        ("top:2,margins=0.1,layers=4", ValueError, r"must be early exits of this model \[1, 2, 3\], got 4"),
        ("nonsense", ValueError, "known: top:K"),
        (3, TypeError, "ranking must be a RankPolicy, its short form or None"),
    ):
        with pytest.raises(error, match=message):
            engine.ranking = wrong
        assert engine.ranking == RankPolicy(2, {2: 0.1})
    assert engine.with_policy("constant:1").ranking == engine.ranking


def test_ranking_is_saved_with_the_model(scoring, tokenizer, tmp_path):
    scoring.exit_config.ranking = "top:2,margins=0.1,layers=2"
    engine = make_engine(scoring, tokenizer)
    engine.save_pretrained(tmp_path)
    loaded = Engine.from_pretrained(tmp_path)
    assert loaded.ranking == engine.ranking == RankPolicy(2, {2: 0.1})
    assert Engine(MultiExitBert.from_pretrained(tmp_path), tokenizer, "full").ranking is None


def test_digests_without_a_ranking_stay():
    assert ExitConfig(policy="full").digest() == ExitConfig(policy="full", ranking=None).digest()
    assert ExitConfig(ranking="top:2,margins=0.1,layers=2").digest() != ExitConfig().digest()
    with pytest.raises(TypeError, match="ranking must be a str or None"):
        ExitConfig(ranking=3)


def test_pairs_that_are_cut_are_counted_for_each_query(scoring, tokenizer, groups):
    engine = make_engine(scoring, tokenizer, policy="full", max_length=10, truncation=True, window=20)
    lengths = [[len(tokenizer(query, text)["input_ids"]) for text in texts] for query, texts in groups]
    found = [ranking.truncated for ranking in engine.rank_many(groups)]
    assert found == [sum(length > 10 for length in of_query) for of_query in lengths]
    assert sum(found) > 0
