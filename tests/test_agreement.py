"""Learned values of the exit table, and depth allocated by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geep_triton import Engine, build_exit_table
from geep_triton.table.allocate import allocate, price_for
from geep_triton.table.exit_table import ExitTable
from geep_triton.table.learned import fit_values, length_bucket
from geep_triton.table.records import ExitRecords, TableSettings, first_sure_exit
from geep_triton.tokens.ragged import Tokens

EXITS = (1, 2, 4)


def make_table(count=600, seed=0, ngram=1):
    """Texts of tokens 5..9; those with a 9 agree only from the last exit on, those with an 8 from the second."""
    generator = torch.Generator().manual_seed(seed)
    samples = [
        torch.randint(5, 10, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 5, (count,), generator=generator)
    ]
    agrees = torch.tensor([[9 not in s and 8 not in s, 9 not in s, True] for s in samples])
    records = ExitRecords(Tokens.from_lists([[2, *s, 3] for s in samples]), 1.0 - agrees.float(), agrees)
    return ExitTable.from_records(records, EXITS, TableSettings(0.5, ngram), 12, "f", (0, 2, 3))


@pytest.mark.parametrize("ngram", [1, 2])
def test_learned_values_tell_easy_texts_from_hard_ones(ngram):
    table = make_table(ngram=ngram).learn("agreement")
    test = make_table(200, seed=1)
    agreement = table.predict_agreement(test.records.tokens)
    assert agreement.shape == (200, 3)
    assert (agreement[:, -1] == 1).all()
    right = (agreement[:, :2] > 0.5) == test.records.agrees[:, :2]
    assert right.double().mean() > 0.9
    exits = torch.searchsorted(torch.tensor(EXITS), allocate(agreement, EXITS, 0.05))
    assert test.records.agrees.gather(1, exits[:, None]).double().mean() > 0.9


def test_prediction_equals_the_formula():
    table = make_table().learn("agreement", epochs=3)
    tokens = Tokens.from_lists([[2, 5, 9, 11, 3], [2, 3]])
    weights, bias = table.learned["agreement"].weights, table.learned["agreement"].length_bias
    rows = {int(key): weights[row] for row, key in enumerate(table.keys)}
    first = (rows[5] + rows[9] + weights[-1]) / 3 + bias[length_bucket(torch.tensor([5]))[0]]
    expected = torch.stack([first, bias[length_bucket(torch.tensor([2]))[0]]]).sigmoid()
    expected[:, -1] = 1.0
    torch.testing.assert_close(table.predict_agreement(tokens)[0], expected[0])


def test_learned_values_are_saved_and_dropped_by_a_merge(tmp_path):
    table = replace(make_table().learn("agreement", epochs=2).learn("exits", epochs=2), save_records=True)
    table.save_pretrained(tmp_path)
    again = ExitTable.load(tmp_path)
    tokens = table.records.tokens
    assert torch.equal(again.predict_agreement(tokens), table.predict_agreement(tokens))
    assert torch.equal(again.records.agrees, table.records.agrees)
    assert torch.equal(again.predict(tokens, values="learned").exits, table.predict(tokens, values="learned").exits)
    assert again.price_for(mean_depth=2.0) == table.price_for(mean_depth=2.0)
    assert table.merge(make_table(seed=2)).learned == {}
    assert table.merge(make_table(seed=2)).records.agrees.shape == (1200, 3)
    small = table.without_records()
    assert torch.equal(small.predict_agreement(tokens), table.predict_agreement(tokens))
    with pytest.raises(ValueError, match="has no records of its texts"):
        small.learn("agreement")


def test_no_learned_values():
    tokens = Tokens.from_lists([[5]])
    with pytest.raises(ValueError, match=r"no learned values of 'agreement': model.exit_table = .*\.learn\('agreement'\)$"):
        make_table().predict_agreement(tokens)
    for table, what in (
        (make_table().without_records(), r"\('agreement',\)"),
        (make_table().learn("exits", epochs=1).without_records(), r"\('exits', 'agreement'\)"),
    ):
        with pytest.raises(ValueError, match=rf"build_exit_table\(model, tokenizer, texts, \.\.\., learn={what}\)$"):
            table.predict_agreement(tokens)


def test_what_cannot_be_learned():
    table = make_table(50)
    with pytest.raises(ValueError, match="unknown what 'magic'; known: agreement, exits, forecasts, skips"):
        table.learn("magic")
    with pytest.raises(ValueError, match="most_paths is only for 'skips', got most_paths=3 with 'agreement'"):
        table.learn("agreement", most_paths=3)
    with pytest.raises(ValueError, match="most_paths must be at least 1, got 0"):
        table.learn("skips", most_paths=0)


def test_what_was_learned_before_is_kept():
    first = make_table(50).learn("agreement", epochs=1)
    both = first.learn("exits", epochs=1)
    assert set(first.learned) == {"agreement"}
    assert set(both.learned) == {"agreement", "exits"}
    assert both.learned["agreement"] is first.learned["agreement"]
    assert set(both.rebuild(threshold=0.1).learned) == {"agreement"}
    assert set(both.rebuild(smoothing=3.0).learned) == {"agreement", "exits"}
    assert both.rebuild(ngram=2).learned == {}


def test_a_table_decides_by_agreement_where_it_has_learned_it():
    table, tokens = make_table(2000), make_table(1000, seed=1).records.tokens
    assert table.decides_by == "counts"
    assert torch.equal(table.decide(tokens), table.predict(tokens).exits)
    learned = table.learn("agreement")
    assert learned.decides_by == "agreement"
    decided = learned.decide(tokens)
    assert torch.equal(decided, allocate(learned.predict_agreement(tokens), EXITS, learned.price_for(agreement=0.98)))
    exits = torch.searchsorted(torch.tensor(EXITS), decided)
    agrees = make_table(1000, seed=1).records.agrees.gather(1, exits[:, None]).double().mean()
    assert 0.96 < agrees < 1
    assert decided.double().mean() < 4
    assert learned.without_records().decides_by == "agreement"
    assert table.learn("exits", epochs=1).decides_by == "counts"


@pytest.mark.parametrize(
    ("count", "learn", "expected"), [(19, None, set()), (20, None, {"agreement"}), (40, (), set()), (40, ["exits"], {"exits"})]
)
def test_agreement_is_learned_unless_other_things_are_asked_for(model, tokenizer, many, count, learn, expected):
    assert set(build_exit_table(model, tokenizer, many[:count], 0.8, learn=learn, progress=False).learned) == expected


def test_too_few_texts():
    with pytest.raises(ValueError, match="at least 20 texts, got 5"):
        make_table(5).learn("agreement")
    table = make_table(50)
    tokens = table.records.tokens
    with pytest.raises(ValueError, match="every n-gram of the texts"):
        fit_values(table.keys[:2], tokens, tokens.ids < 4, 1, table.records.agrees, one_exit=False)


def test_length_buckets():
    assert length_bucket(torch.tensor([0, 1, 2, 3, 4, 512, 10**9])).tolist() == [0, 0, 2, 3, 4, 18, 19]


def test_allocate_weighs_agreement_against_layers():
    agreement = torch.tensor([[0.5, 0.9, 1.0], [0.95, 0.96, 1.0], [0.3, 0.3, 1.0]])
    assert allocate(agreement, EXITS, 0.0).tolist() == [4, 4, 4]
    assert allocate(agreement, EXITS, 0.1).tolist() == [2, 1, 4]
    assert allocate(agreement, EXITS, 1.0).tolist() == [1, 1, 1]


def test_where_tokens_tell_nothing_all_get_one_depth():
    agreement = torch.tensor([[0.7, 0.85, 1.0]]).expand(50, 3)
    for price in (0.0, 0.01, 0.1, 0.14, 0.5):
        assert allocate(agreement, EXITS, price).unique().numel() == 1


def test_price_for_a_budget():
    agreement = torch.rand(500, 3).sort(1).values
    agreement[:, -1] = 1.0
    agrees = torch.rand(500, 3) < agreement
    for depth in (1.5, 2.0, 3.0):
        chosen = allocate(agreement, EXITS, price_for(agreement, agrees, EXITS, mean_depth=depth))
        assert depth - 0.1 <= chosen.double().mean() <= depth
    chosen = allocate(agreement, EXITS, price_for(agreement, agrees, EXITS, expected_agreement=0.9))
    index = torch.searchsorted(torch.tensor(EXITS), chosen)
    assert 0.9 <= agrees.gather(1, index[:, None]).double().mean() <= 0.92
    with pytest.raises(ValueError, match="exactly one"):
        price_for(agreement, agrees, EXITS)
    with pytest.raises(ValueError, match="mean_depth must be at least 2, the first layer at which texts may leave, got 1.5"):
        price_for(agreement, agrees, (2, 3, 4), mean_depth=1.5)


def test_the_table_prices_a_budget_on_texts_it_did_not_learn_from():
    table = make_table(2000).learn("agreement")
    assert table.learned["agreement"].held_out.shape == (200, 3)
    tokens = make_table(1000, seed=1).records.tokens
    for depth in (1.5, 2.5, 3.0):
        chosen = allocate(table.predict_agreement(tokens), EXITS, table.price_for(mean_depth=depth))
        assert 1.0 <= chosen.double().mean() <= depth + 0.2
    predicted = table.learned["agreement"].held_out.sigmoid()
    predicted[:, -1] = 1.0
    chosen = allocate(predicted, EXITS, table.price_for(agreement=0.9))
    index = torch.searchsorted(torch.tensor(EXITS), chosen)
    assert table.learned["agreement"].held_out_targets.gather(1, index[:, None]).double().mean() >= 0.9
    assert chosen.double().mean() < 4
    with pytest.raises(ValueError, match=r"learn\('agreement'\)"):
        make_table().price_for(mean_depth=2.0)


def test_learned_exits():
    table, test = make_table(2000).learn("exits"), make_table(500, seed=1)
    actual = torch.tensor(EXITS)[first_sure_exit(test.records.uncertainty, 0.5)]
    learned = table.predict(test.records.tokens, values="learned")
    torch.testing.assert_close(learned.probabilities.sum(1), torch.ones(500))
    assert (learned.exits == actual).double().mean() > 0.95
    assert learned.histogram.sum() == 500
    assert table.rebuild(threshold=0.9).learned == {}
    with pytest.raises(ValueError, match=r"learn\('exits'\)"):
        test.predict(test.records.tokens, values="learned")
    with pytest.raises(ValueError, match="unknown values 'magic'"):
        table.predict(test.records.tokens, values="magic")


@pytest.mark.parametrize(
    "policy",
    ["allocated:0.05", "allocated,mean_depth=2.5", "allocated,agreement=0.9", "allocated:0.05+threshold:0.8,regroup=always"],
)
def test_policies_with_a_price(model, tokenizer, texts, policy):
    from geep_triton.promises.simulate import simulate

    model.exit_table = build_exit_table(model, tokenizer, texts * 4, 0.8, learn=("agreement",), progress=False)
    engine = Engine(model, tokenizer, policy, token_budget=40)
    record = engine.every_exit(texts)
    simulated = simulate(model, engine.policy, record.tokens, record.logits)
    assert (simulated + 1).tolist() == engine.predict(texts).exit_layers.tolist()
