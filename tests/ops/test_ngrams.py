"""N-gram keys against plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geep_triton.ops.ngrams import ngram_keys
from geep_triton.ops.reference.ngrams import mix64
from geep_triton.tokens.ragged import Tokens

SPECIAL = {0, 2, 3}
RAGGED = st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=8)


def keys_of(samples, ngram):
    tokens = Tokens.from_lists(samples)
    return ngram_keys(tokens.ids, tokens.offsets, torch.isin(tokens.ids, torch.tensor(sorted(SPECIAL))), ngram)


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
    keys, owners = keys_of(samples, ngram)
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
    keys, _ = keys_of([[5, 6], [6, 5]], 2)
    assert len(set(keys.tolist())) == 4


@pytest.mark.parametrize("offsets", [[], [1, 3], [0, 2]])
def test_ngram_keys_refuse_wrong_offsets(offsets):
    with pytest.raises(ValueError, match="offsets must run from 0"):
        ngram_keys(torch.tensor([1, 2, 3]), torch.tensor(offsets, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), 1)


def test_ngram_keys_refuse_a_mask_of_another_length():
    with pytest.raises(ValueError, match=r"special must be of the length of ids \(3\), got 2"):
        ngram_keys(torch.tensor([1, 2, 3]), torch.tensor([0, 3]), torch.zeros(2, dtype=torch.bool), 1)
