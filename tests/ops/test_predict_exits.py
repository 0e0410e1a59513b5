"""Exits predicted from tokens, against a loop in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.predict_exits import ScoreTable, predict_exits
from geep_triton.ops.reference.predict_exits import exit_at
from geep_triton.tokens.ragged import Tokens
from tests.ops.conftest import Target
from tests.ops.tolerances import TOLERANCE

FEW = settings.get_profile("ops")
VOCABULARY, SPECIAL = 20, (0, 2, 3)
ON_THE_HOST = Target("torch", "cpu")
RAGGED = st.lists(st.lists(st.integers(-1, VOCABULARY + 1), max_size=9), min_size=1, max_size=8)


def keys_of(samples, ngram):
    tokens = Tokens.from_lists(samples)
    return ngram_keys(tokens.ids, tokens.offsets, torch.isin(tokens.ids, torch.tensor(SPECIAL)), ngram)


def make_scores(rows: int, exits: int) -> torch.Tensor:
    """Distributions in 64ths: their sums are exact in any order, so that ties fall alike everywhere."""
    parts = torch.randint(0, 8, (rows, exits))
    parts[:, -1] = 64 - parts[:, :-1].sum(1)
    return parts / 64


def make_table(target, samples, ngram, layers, reduction="mean"):
    """A table that knows every second key of the samples, and its scores as a dictionary."""
    known = keys_of(samples, ngram)[0].unique()[::2]
    known = known[(known < VOCABULARY) & (known != -1)]
    scores = make_scores(known.numel() + 1, len(layers))
    if reduction == "naive_bayes":
        scores = (scores + 0.1) / (scores + 0.1).sum(1, keepdim=True)
    table = ScoreTable.build(known, scores, layers, SPECIAL, VOCABULARY, ngram, reduction, target.device)
    return table, dict(zip(known.tolist(), scores, strict=False)), scores[-1]


def probabilities_by_hand(samples, ngram, by_key, prior, reduction):
    keys, owners = keys_of(samples, ngram)
    result = []
    for index in range(len(samples)):
        found = [by_key.get(key, prior).double() for key in keys[owners == index].tolist()]
        if not found:
            result.append(prior.double())
        elif reduction == "mean":
            result.append(torch.stack(found).mean(0))
        else:
            product = prior.double() * torch.stack([score / prior.double() for score in found]).prod(0)
            result.append(product / product.sum())
    return torch.stack(result)


def predict(target, table, samples, statistic="argmax"):
    tokens = Tokens.from_lists(samples)
    return predict_exits(table, target(tokens.ids), target(tokens.offsets), statistic, backend=target.backend)


@FEW
@given(samples=RAGGED, ngram=st.integers(1, 4), reduction=st.sampled_from(["mean", "naive_bayes"]), exits=st.integers(1, 5))
def test_probabilities_equal_a_loop(target, samples, ngram, reduction, exits):
    torch.manual_seed(len(samples))
    table, by_key, prior = make_table(target, samples, ngram, tuple(range(1, exits + 1)), reduction)
    result = predict(target, table, samples)
    expected = probabilities_by_hand(samples, ngram, by_key, prior, reduction)
    torch.testing.assert_close(result.probabilities.cpu().double(), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("statistic", ["argmax", "mean", 0.25, 0.9, 1.0])
@pytest.mark.parametrize("layers", [(1,), (1, 2, 3, 6), tuple(range(1, 13))], ids=len)
@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_decision_and_histogram(target, statistic, layers, ngram):
    """Samples of 0 to 512 tokens; lengths are powers of two, so that their means are exact too and ties fall alike."""
    lengths = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    samples = [torch.randint(4, VOCABULARY, (length,)).tolist() for length in lengths]
    table, by_key, prior = make_table(target, samples, ngram, layers)
    result = predict(target, table, samples, statistic)
    probabilities = result.probabilities.cpu()
    by_hand = probabilities_by_hand(samples, ngram, by_key, prior, "mean")
    torch.testing.assert_close(probabilities.double(), by_hand, atol=TOLERANCE, rtol=0)
    expected = torch.tensor(layers)[exit_at(probabilities, torch.tensor(layers), statistic)]
    assert result.exits.tolist() == expected.tolist()
    assert result.histogram.tolist() == [expected.tolist().count(layer) for layer in layers]


def test_no_samples(target):
    table, *_ = make_table(target, [[5, 6]], 2, (1, 2))
    result = predict(target, table, [])
    assert result.probabilities.shape == (0, 2)
    assert result.exits.tolist() == []
    assert result.histogram.tolist() == [0, 0]


def test_a_sample_of_special_tokens_gets_the_prior(target):
    table, _, prior = make_table(target, [[5, 6, 7]], 2, (1, 2, 3))
    result = predict(target, table, [[2, 3], [], [0]])
    assert torch.equal(result.probabilities.cpu(), prior.expand(3, 3))


def test_naive_bayes_survives_an_exit_nobody_took(target):
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    table = ScoreTable.build(torch.tensor([5]), scores, (1, 2, 3), SPECIAL, VOCABULARY, 1, "naive_bayes", target.device)
    result = predict(target, table, [[5, 5], [6]]).probabilities.cpu()
    assert result.isfinite().all()
    torch.testing.assert_close(result[1], scores[1], atol=TOLERANCE, rtol=0)


LAYERS = torch.tensor([1, 3, 6])


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [("argmax", [1, 6, 3, 1]), ("mean", [3, 6, 6, 1]), (0.5, [1, 6, 3, 1]), (0.9, [6, 6, 6, 1]), (1.0, [6, 6, 6, 1])],
)
def test_decisions(target, statistic, expected):
    """Of a table whose tokens 4 to 7 have these distributions."""
    shares = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.2, 0.5, 0.3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    keys, layers = torch.tensor([4, 5, 6, 7]), tuple(LAYERS.tolist())
    table = ScoreTable.build(keys, shares, layers, SPECIAL, VOCABULARY, 1, "mean", target.device)
    assert predict(target, table, [[4], [5], [6], [7]], statistic).exits.tolist() == expected


def test_argmax_takes_the_shallowest_of_equals(target):
    shares = torch.tensor([[0.375, 0.375, 0.25], [0.0, 0.0, 1.0]])
    table = ScoreTable.build(torch.tensor([4]), shares, (1, 3, 6), SPECIAL, VOCABULARY, 1, "mean", target.device)
    assert predict(target, table, [[4, 4, 4]]).exits.tolist() == [1]


def test_mean_of_a_certain_exit_is_that_exit():
    assert exit_at(torch.eye(3), LAYERS, "mean").tolist() == [0, 1, 2]


def test_quantiles_never_get_shallower():
    probabilities = torch.rand(50, 3).softmax(-1)
    depths = torch.stack([exit_at(probabilities, LAYERS, q) for q in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)])
    assert (depths.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("statistic", ["median", 0.0, 1.2, -0.1])
def test_bad_decisions(statistic):
    table, *_ = make_table(ON_THE_HOST, [[5, 6]], 1, (1, 2))
    with pytest.raises(ValueError, match="statistic"):
        predict_exits(table, torch.tensor([5]), torch.tensor([0, 1]), statistic)


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2]])
def test_wrong_offsets(offsets):
    table, *_ = make_table(ON_THE_HOST, [[5, 6]], 1, (1, 2))
    with pytest.raises(ValueError, match="offsets must run from 0"):
        predict_exits(table, torch.tensor([1, 5, 3]), torch.tensor(offsets, dtype=torch.int64))
