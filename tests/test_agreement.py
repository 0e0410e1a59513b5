"""Learned values of the exit table, and depth allocated by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from geep_triton import Engine
from geep_triton.exits.agreement import allocate, price_for
from geep_triton.exits.learned import fit_values, length_bucket
from geep_triton.exits.table import ExitRecords, ExitTable, TableSettings, first_sure_exit
from geep_triton.outputs import Tokens

EXITS = (1, 2, 4)


def make_table(count=600, seed=0, ngram=1):
    """Texts of tokens 5..9; those with a 9 agree only from the last exit on, those with an 8 from the second."""
    generator = torch.Generator().manual_seed(seed)
    samples = [torch.randint(5, 10, (int(n),), generator=generator).tolist() for n in torch.randint(1, 5, (count,))]
    agrees = torch.tensor([[9 not in s and 8 not in s, 9 not in s, True] for s in samples])
    records = ExitRecords(Tokens.from_lists([[2, *s, 3] for s in samples]), 1.0 - agrees.float(), agrees)
    return ExitTable.from_records(records, EXITS, TableSettings(0.5, ngram), 12, "f", (0, 2, 3))


@pytest.mark.parametrize("ngram", [1, 2])
def test_learned_values_tell_easy_texts_from_hard_ones(ngram):
    table = make_table(ngram=ngram).with_agreement()
    test = make_table(200, seed=1)
    agreement = table.predict_agreement(test.records.tokens)
    assert agreement.shape == (200, 3)
    assert (agreement[:, -1] == 1).all()
    right = (agreement[:, :2] > 0.5) == test.records.agrees[:, :2]
    assert right.double().mean() > 0.9
    exits = torch.searchsorted(torch.tensor(EXITS), allocate(agreement, EXITS, 0.05))
    assert test.records.agrees.gather(1, exits[:, None]).double().mean() > 0.9


def test_prediction_equals_the_formula():
    table = make_table().with_agreement(epochs=3)
    tokens = Tokens.from_lists([[2, 5, 9, 11, 3], [2, 3]])
    weights, bias = table.agreement.weights, table.agreement.length_bias
    rows = {int(key): weights[row] for row, key in enumerate(table.keys)}
    first = (rows[5] + rows[9] + weights[-1]) / 3 + bias[length_bucket(torch.tensor([5]))[0]]
    expected = torch.stack([first, bias[length_bucket(torch.tensor([2]))[0]]]).sigmoid()
    expected[:, -1] = 1.0
    torch.testing.assert_close(table.predict_agreement(tokens)[0], expected[0])


def test_learned_values_are_saved_and_dropped_by_a_merge(tmp_path):
    table = replace(make_table().with_agreement(epochs=2).with_exit_values(epochs=2), save_records=True)
    table.save_pretrained(tmp_path)
    again = ExitTable.load(tmp_path)
    tokens = table.records.tokens
    assert torch.equal(again.predict_agreement(tokens), table.predict_agreement(tokens))
    assert torch.equal(again.records.agrees, table.records.agrees)
    assert torch.equal(again.predict(tokens, values="learned").exits, table.predict(tokens, values="learned").exits)
    assert again.price_for(mean_depth=2.0) == table.price_for(mean_depth=2.0)
    assert table.merge(make_table(seed=2)).agreement is None
    assert table.merge(make_table(seed=2)).records.agrees.shape == (1200, 3)
    small = table.without_records()
    assert torch.equal(small.predict_agreement(tokens), table.predict_agreement(tokens))
    with pytest.raises(ValueError, match="without the records of its texts"):
        small.with_agreement()


def test_no_learned_values():
    with pytest.raises(ValueError, match=r"has no learned values: model.exit_table = model.exit_table.with_agreement\(\)"):
        make_table().predict_agreement(Tokens.from_lists([[5]]))
    with pytest.raises(ValueError, match=r"has no learned values: .* build_exit_table\(model, \.\.\., learn_agreement=True\)"):
        make_table().without_records().predict_agreement(Tokens.from_lists([[5]]))


def test_too_few_texts():
    with pytest.raises(ValueError, match="at least 20 texts, got 5"):
        make_table(5).with_agreement()
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
    with pytest.raises(ValueError, match="mean_depth must be at least 2, the first exit's layer, got 1.5"):
        price_for(agreement, agrees, (2, 3, 4), mean_depth=1.5)


def test_the_table_prices_a_budget_on_texts_it_did_not_learn_from():
    table = make_table(2000).with_agreement()
    assert table.agreement.held_out.shape == (200, 3)
    tokens = make_table(1000, seed=1).records.tokens
    for depth in (1.5, 2.5, 3.0):
        chosen = allocate(table.predict_agreement(tokens), EXITS, table.price_for(mean_depth=depth))
        assert 1.0 <= chosen.double().mean() <= depth + 0.2
    predicted = table.agreement.held_out.sigmoid()
    predicted[:, -1] = 1.0
    chosen = allocate(predicted, EXITS, table.price_for(agreement=0.9))
    index = torch.searchsorted(torch.tensor(EXITS), chosen)
    assert table.agreement.held_out_targets.gather(1, index[:, None]).double().mean() >= 0.9
    assert chosen.double().mean() < 4
    with pytest.raises(ValueError, match="with_agreement"):
        make_table().price_for(mean_depth=2.0)


def test_learned_exits():
    table, test = make_table(2000).with_exit_values(), make_table(500, seed=1)
    actual = torch.tensor(EXITS)[first_sure_exit(test.records.uncertainty, 0.5)]
    learned = table.predict(test.records.tokens, values="learned")
    torch.testing.assert_close(learned.probabilities.sum(1), torch.ones(500))
    assert (learned.exits == actual).double().mean() > 0.95
    assert learned.histogram.sum() == 500
    assert table.rebuild(threshold=0.9).exit_values is None
    with pytest.raises(ValueError, match="with_exit_values"):
        test.predict(test.records.tokens, values="learned")
    with pytest.raises(ValueError, match="unknown values 'magic'"):
        table.predict(test.records.tokens, values="magic")


@pytest.mark.parametrize(
    "policy",
    ["allocated:0.05", "allocated,mean_depth=2.5", "allocated,agreement=0.9", "verified:0.8,price=0.05,pooling=always"],
)
def test_policies_with_a_price(model, tokenizer, texts, policy):
    from geep_triton import build_exit_table
    from geep_triton.engine.simulate import simulate

    model.exit_table = build_exit_table(model, tokenizer, texts * 4, 0.8, learn_agreement=True, progress=False)
    engine = Engine(model, tokenizer, policy, token_budget=40)
    assert (simulate(model, engine.policy, *engine.exit_logits(texts)) + 1).tolist() == engine.predict(
        texts
    ).exit_layers.tolist()
