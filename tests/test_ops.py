"""The exit table's and exit scoring's ops against plain Python."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.hash_table import insert_add, lookup, predict_exits
from geep_triton.ops.ngrams import ngram_keys
from geep_triton.outputs import Tokens
from geep_triton.reference.ngrams import mix64

SPECIAL = {0, 2, 3}
RAGGED = st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=8)
KEYS = st.lists(st.sampled_from([-(2**63), -1, 0, 1, 7, 2**40, 2**63 - 1]), max_size=40)


def mix64_by_hand(x: int) -> int:
    mask = (1 << 64) - 1
    x &= mask
    for constant in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = ((x ^ (x >> 33)) * constant) & mask
    x ^= x >> 33
    return x - (1 << 64) if x >> 63 else x


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_mix64_is_murmurs(values):
    assert mix64(torch.tensor(values)).tolist() == [mix64_by_hand(value) for value in values]


def ngrams_by_hand(samples, ngram):
    """(order, sample, n-gram) of every window without a special token, by order, then position."""
    found = []
    for order in range(1, ngram + 1):
        for index, ids in enumerate(samples):
            for begin in range(len(ids) - order + 1):
                window = tuple(ids[begin : begin + order])
                if not SPECIAL & set(window):
                    found.append((order, index, window))
    return found


@given(RAGGED, st.integers(1, 4))
def test_ngram_keys_equal_a_loop(samples, ngram):
    tokens = Tokens.from_lists(samples)
    keys, owners = ngram_keys(tokens.ids, tokens.offsets, torch.tensor(sorted(SPECIAL)), ngram)
    expected = ngrams_by_hand(samples, ngram)
    assert owners.tolist() == [index for _, index, _ in expected]
    # Equal n-grams have equal keys and different ones different keys, across orders.
    windows = {}
    for key, (_, _, window) in zip(keys.tolist(), expected, strict=True):
        assert windows.setdefault(key, window) == window
    assert len(windows) == len({window for _, _, window in expected})
    for key, window in windows.items():
        assert key == window[0] if len(window) == 1 else key < 0


def test_ngram_keys_depend_on_order_of_tokens():
    keys, _ = ngram_keys(torch.tensor([5, 6, 6, 5]), torch.tensor([0, 2, 4]), torch.tensor([0]), 2)
    assert len(set(keys.tolist())) == 4


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2]])
def test_ngram_keys_refuse_wrong_offsets(offsets):
    with pytest.raises(ValueError, match="offsets must run from 0"):
        ngram_keys(torch.tensor([1, 2, 3]), torch.tensor(offsets, dtype=torch.int64), torch.tensor([0]), 1)


@given(KEYS, st.integers(1, 5), st.randoms())
def test_insert_add_counts_exactly(keys, num_exits, random):
    exits = [random.randrange(num_exits) for _ in keys]
    table_keys, counts = insert_add(torch.tensor(keys, dtype=torch.int64), torch.tensor(exits, dtype=torch.int64), num_exits)
    expected = Counter(zip(keys, exits, strict=True))
    assert table_keys.tolist() == sorted(set(keys))
    for row, key in enumerate(table_keys.tolist()):
        assert counts[row].tolist() == [expected[key, e] for e in range(num_exits)]


@given(KEYS, KEYS)
def test_lookup_finds_rows_and_misses(stored, queries):
    table = torch.tensor(sorted(set(stored)), dtype=torch.int64)
    rows = lookup(table, torch.tensor(queries, dtype=torch.int64)).tolist()
    where = {key: row for row, key in enumerate(table.tolist())}
    assert rows == [where.get(key, len(table)) for key in queries]


@pytest.mark.parametrize("exits", [[-1], [3]])
def test_insert_add_refuses_exits_out_of_range(exits):
    with pytest.raises(ValueError, match="between 0 and 2"):
        insert_add(torch.tensor([1]), torch.tensor(exits), 3)


@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=6), st.randoms())
def test_predict_exits_equals_a_loop(samples, random):
    scores = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3], [0.0, 0.5, 0.5], [0.25, 0.35, 0.4]])
    pairs = [(row, index) for index, rows in enumerate(samples) for row in rows]
    random.shuffle(pairs)  # n-grams of several orders come in any order
    rows = torch.tensor([row for row, _ in pairs], dtype=torch.int64)
    owners = torch.tensor([index for _, index in pairs], dtype=torch.int64)
    mean = predict_exits(rows, owners, len(samples), scores)
    bayes = predict_exits(rows, owners, len(samples), scores, "naive_bayes")
    prior = scores[-1].double()
    for index, sample in enumerate(samples):
        found = scores[sample].double()
        expected = found.mean(0) if sample else prior
        torch.testing.assert_close(mean[index].double(), expected, atol=1e-6, rtol=0)
        product = prior * (found / prior).prod(0)
        if product.sum() > 0:
            torch.testing.assert_close(bayes[index].double(), product / product.sum(), atol=1e-5, rtol=0)


def test_naive_bayes_survives_an_exit_nobody_took():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]])
    result = predict_exits(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), 2, scores, "naive_bayes")
    assert result.isfinite().all()
    torch.testing.assert_close(result[1], scores[1])


def entropy_by_hand(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    shares = [w / sum(weights) for w in weights]
    return -sum(p * math.log(p) for p in shares if p > 0) / math.log(len(logits))


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), max_size=6), st.floats(0, 1))
def test_normalized_entropy_equals_a_loop(rows, threshold):
    logits = torch.tensor(rows, dtype=torch.float32).reshape(-1, 3)
    prediction, uncertainty, leaves = score_exits(logits, threshold)
    assert uncertainty.dtype == torch.float32
    for index, row in enumerate(logits.tolist()):
        assert float(uncertainty[index]) == pytest.approx(entropy_by_hand(row), abs=2e-6)
        assert row[int(prediction[index])] == max(row)
    assert leaves.tolist() == [float(u) <= threshold for u in uncertainty]


@pytest.mark.parametrize("classes", [2, 7, 5000])
def test_entropy_ends(classes):
    logits = torch.zeros(2, classes)
    logits[1, 0] = 1e4
    _, uncertainty, leaves = score_exits(logits, 0.5)
    assert uncertainty[0] == pytest.approx(1.0, abs=1e-5)
    assert uncertainty[1] == 0.0
    assert leaves.tolist() == [False, True]


def test_infinite_and_nan_logits():
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[-inf, 0.0, 0.0], [nan, 0.0, 1.0], [inf, 0.0, 0.0], [-inf, -inf, 3.0]])
    _, uncertainty, leaves = score_exits(logits, 1.0)
    assert uncertainty[0] == pytest.approx(math.log(2) / math.log(3))
    assert uncertainty[1:3].isnan().all()
    assert uncertainty[3] == 0.0
    assert leaves.tolist() == [True, False, False, True]


@pytest.mark.parametrize(
    ("logits", "threshold", "criterion", "message"),
    [
        (torch.zeros(3, 1), 0.5, "normalized_entropy", "needs at least two classes.*full or constant depth"),
        (torch.zeros(3), 0.5, "normalized_entropy", r"must have 2 dimension\(s\), got shape \(3,\)"),
        (torch.zeros(3, 2), 1.5, "normalized_entropy", "threshold must be between"),
        (torch.zeros(3, 2), 0.5, "vibes", "unknown criterion 'vibes'; known: normalized_entropy"),
    ],
)
def test_score_exits_refuses(logits, threshold, criterion, message):
    with pytest.raises(ValueError, match=message):
        score_exits(logits, threshold, criterion)
