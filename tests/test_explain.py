"""Explanations: what tokens add, what exits say, where a text left and why."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geep_triton import Engine, build_exit_table, explain
from geep_triton.ops.ngrams import ngram_keys

MULTI = "multi_label_classification"


@pytest.fixture
def with_table(model, tokenizer, many):
    model.exit_table = build_exit_table(
        model, tokenizer, many, 0.8, ngram=2, learn=("agreement", "exits"), progress=False, save_records=True
    )
    return model


def bag_without(table, ids, left_out):
    """The keys of a text [ids], without those that have the token at position `left_out`; by hand."""
    keys = []
    for start in range(len(ids)):
        for order in range(1, table.settings.ngram + 1):
            window = ids[start : start + order]
            if len(window) < order or any(token in table.special_ids for token in window):
                continue
            if left_out is not None and start <= left_out < start + order:
                continue
            one = torch.tensor(window)
            found, _ = ngram_keys(one, torch.tensor([0, order]), torch.zeros(order, dtype=torch.bool), order)
            keys.append(int(found[-1]))
    return keys


def depth_of(table, keys, basis, length):
    """The depth that the table predicts of a bag of keys, by its definition."""
    known = {key: row for row, key in enumerate(table.keys.tolist())}
    rows = [known.get(key, len(known)) for key in keys]
    layers = torch.tensor(table.exit_layers, dtype=torch.float64)
    if basis == "counts":
        rows = rows or [len(known)]
        return float(table.scores[rows].double().mean(0) @ layers)
    values = table.learned[basis]
    score = values.weights[rows].double().mean(0) if rows else torch.zeros(len(layers), dtype=torch.float64)
    bucket = min(19, int(2 * torch.tensor(float(length)).double().log2()))
    score = score + values.length_bias[bucket].double()
    if basis == "exits":
        return float(score.softmax(-1) @ layers)
    depth = layers[0]
    for index in range(len(layers) - 1):
        depth = depth + (layers[index + 1] - layers[index]) * (1 - score[index].sigmoid())
    return float(depth)


@pytest.mark.parametrize(
    ("policy", "basis"),
    [
        ("predicted:0.9", "counts"),
        ("predicted:0.9,values=learned", "exits"),
        ("allocated:0.05", "agreement"),
        ("predicted", "agreement"),
        ("threshold:0.5", "agreement"),
        ("predicted:0.05+threshold:0.5", "counts"),
    ],
)
def test_what_a_token_adds_is_the_tables_prediction_with_it_less_that_without_it(with_table, tokenizer, texts, policy, basis):
    engine, table = Engine(with_table, tokenizer, policy), with_table.exit_table
    for text, found in zip(texts, explain(engine, texts), strict=True):
        ids = tokenizer(text)["input_ids"]
        assert found.tokens == tuple(tokenizer.convert_ids_to_tokens(ids))
        whole = depth_of(table, bag_without(table, ids, None), basis, len(ids))
        assert found.table.predicts == pytest.approx(whole, abs=1e-4)
        for position, added in enumerate(found.table.added):
            without = depth_of(table, bag_without(table, ids, position), basis, len(ids))
            assert added == pytest.approx(whole - without, abs=1e-4)
        assert (found.table.added[0], found.table.added[-1]) == (0, 0)  # special tokens
        assert found.table.used == (not policy.startswith("threshold"))


POLICIES = [
    *("full", "constant:2", "threshold:0.5", "threshold:0.4/0.6,layers=1/3", "patience:1", "patience:2"),
    *("patience:2,threshold=0.7", "threshold:0.3,criterion=margin", "predicted:0.5", "predicted:0.05+threshold:0.5"),
    *("allocated:0.1", "allocated:0.05+patience:1"),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_it_follows_the_policy(with_table, tokenizer, many, policy):
    engine = Engine(with_table, tokenizer, policy)
    answers, full = engine.predict(many), engine.with_policy("full").predict(many)
    found = explain(engine, many)
    assert [each.exit_layer for each in found] == answers.exit_layers.tolist()
    assert [each.layers_run for each in found] == answers.layers_run.tolist()
    rule = engine.policy.rule(with_table)
    for each, answer, last in zip(found, answers.labels, full.labels, strict=True):
        (left,) = [exit_ for exit_ in each.exits if exit_.leaves]
        assert (left.layer, left.answer, left.same) == (each.exit_layer, answer, answer == last)
        assert each.exits[-1].answer == last
        assert each.exits[-1].same
        scored = [exit_ for exit_ in each.exits if exit_.criterion is not None]
        assert all(exit_.layer <= each.exit_layer for exit_ in scored)
        if rule is None:
            assert scored == []
        elif rule.rule == "confidence" and rule.patience == 1:
            assert all(exit_.threshold == rule.thresholds[exit_.layer] for exit_ in scored)
            assert all((exit_.criterion <= exit_.threshold) == exit_.leaves for exit_ in scored)
        assert each.why.endswith(".")


def test_confidences_are_the_probabilities_of_the_answers(model, tokenizer, texts):
    engine = Engine(model, tokenizer, "threshold:0.5")
    record = engine.every_exit(texts)
    for row, found in enumerate(explain(engine, texts)):
        for index, exit_ in enumerate(found.exits):
            assert exit_.confidence == pytest.approx(float(record.logits[row, index].softmax(-1).max()))


def test_the_reason_names_the_criterion_and_the_threshold(model, tokenizer, many):
    found = explain(Engine(model, tokenizer, "threshold:0.5"), many)
    early = next(each for each in found if each.exit_layer == 2)
    left = early.exits[1]
    assert f"after layer 2 {left.criterion:.3g}, at most 0.5" in early.why
    late = next(each for each in found if each.exit_layer == 4)
    assert "runs to the end" in late.why
    assert f"after layer 1 {late.exits[0].criterion:.3g}, above 0.5" in late.why


@pytest.mark.parametrize(
    ("shape", "served", "policy"),
    [
        ({"num_labels": 1}, {"decision": 0.1}, "distance:0.3"),
        ({"num_labels": 1}, {"tolerance": 0.1}, "steady:0.2"),
        ({"num_labels": 1}, {}, "steady:0.2"),
        ({"num_labels": 1, "problem_type": MULTI}, {}, "distance:0.3"),
        ({"num_labels": 3, "problem_type": MULTI}, {"decision": (0.3, 0.5, 0.6)}, "distance:0.3"),
    ],
)
def test_scores_and_label_sets(make_model, tokenizer, many, shape, served, policy):
    model = make_model(**shape)
    for name, value in served.items():
        setattr(model.exit_config, name, value)
    engine = Engine(model, tokenizer, policy)
    answers, full = engine.predict(many), engine.with_policy("full").predict(many)
    found = explain(engine, many)
    assert [each.exit_layer for each in found] == answers.exit_layers.tolist()
    assert len(set(answers.exit_layers.tolist())) > 1
    comparable = policy.startswith("distance") or "tolerance" in served
    same = model.answers.agree(answers.logits, full.logits).tolist() if comparable else [None] * len(many)
    for row, (each, expected) in enumerate(zip(found, same, strict=True)):
        (left,) = [exit_ for exit_ in each.exits if exit_.leaves]
        assert left.same == expected
        if shape["num_labels"] == 1:
            assert left.answer == pytest.approx(float(answers.scores[row]), abs=1e-5)
        else:
            assert list(left.answer) == answers.label_sets[row]
        if "problem_type" in shape:
            chances = answers.probabilities[row]
            sure = torch.where(answers.given[row], chances, 1 - chances).min()
            assert left.confidence == pytest.approx(float(sure), abs=1e-5)
        else:
            assert left.confidence is None
        if policy.startswith("distance") and each.exit_layer < 4:
            assert f"{-left.criterion:.3g}, at least 0.3" in each.why


def test_without_a_table_nothing_is_shaded_and_it_says_why(model, tokenizer, texts):
    for found in explain(Engine(model, tokenizer, "threshold:0.5"), texts):
        assert found.table is None
        assert "no exit table" in found.no_table


def test_a_table_that_counts_special_tokens_cannot_leave_one_out(with_table, tokenizer, texts):
    with_table.attach_table(replace(with_table.exit_table, special_ids=()))
    for found in explain(Engine(with_table, tokenizer, "threshold:0.5"), texts):
        assert found.table is None
        assert "special ones too" in found.no_table


def test_ids_and_pairs_are_explained_as_texts_are(with_table, tokenizer, texts):
    engine = Engine(with_table, tokenizer, "predicted:0.9")
    by_text = explain(engine, texts)
    assert explain(engine, [{"input_ids": tokenizer(text)["input_ids"]} for text in texts]) == by_text
    (pair,) = explain(engine, [("the film was good", "bad")])
    assert pair.tokens.count("[SEP]") == 2


def test_layers_that_are_skipped(make_model, tokenizer, many):
    torch.manual_seed(0)
    model = make_model(skip_gate="mean", skip_layers=[2, 3], skip_gate_bias=0.0)
    engine = Engine(model, tokenizer, "threshold:0.7")
    answers = engine.predict(many)
    assert answers.skipped.any()
    found = explain(engine, many)
    assert [each.exit_layer for each in found] == answers.exit_layers.tolist()
    assert [each.layers_run for each in found] == answers.layers_run.tolist()


def test_what_is_refused(with_table, tokenizer, texts):
    with pytest.raises(TypeError, match="engine must be a Engine"):
        explain(with_table, texts)
    engine = Engine(with_table, tokenizer, "constant:2,answer_head=shared")
    with pytest.raises(ValueError, match="'shared' are not recorded"):
        explain(engine, texts)
    with pytest.raises(TypeError, match="must be a list"):
        explain(Engine(with_table, tokenizer, "full"), "one text")
