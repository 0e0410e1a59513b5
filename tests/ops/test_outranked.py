"""Who is outranked, against a loop over groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.outranked import outranked

INF, NAN = math.inf, math.nan


def by_hand(groups, top_k, margin):
    """Who leaves, and how many scores are not finite."""
    leaves = []
    for group in groups:
        finite = sorted((score for score in group if math.isfinite(score)), reverse=True)
        worst = finite[top_k - 1] if len(finite) >= top_k else -INF
        leaves += [math.isfinite(score) and worst - score > margin for score in group]
    return leaves, sum(not math.isfinite(score) for group in groups for score in group)


def check(target, groups, top_k, margin, dtype=torch.float32):
    scores = torch.tensor([score for group in groups for score in group], dtype=dtype)
    offsets = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0)
    found = outranked(target(scores), target(offsets), top_k, margin, backend=target.backend)
    rounded = [part.tolist() for part in scores.split([len(group) for group in groups])]
    leaves, invalid = by_hand(rounded, top_k, margin)
    assert found.leaves.tolist() == leaves
    assert found.counts.tolist() == [sum(leaves), invalid]
    return leaves


EIGHTHS = st.integers(-40, 40).map(lambda value: value / 8)  # whose differences are exact, and which often tie
ODD = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 3e38, -3e38, 1e-45, -1e-45])


@settings.get_profile("ops")
@given(
    groups=st.lists(st.lists(EIGHTHS | ODD, max_size=8), max_size=6),
    top_k=st.integers(1, 9),
    margin=st.sampled_from([0.0, 0.125, 1.0, 4.0, INF]),
)
def test_outranked_equals_a_loop(target, groups, top_k, margin):
    check(target, groups, top_k, margin)


@pytest.mark.parametrize(
    ("groups", "top_k", "leaving"),
    [
        ([], 3, []),
        ([[]], 3, []),
        ([[], [], [5.0]], 1, [False]),
        ([[1.0], [7.0], [0.0]], 1, [False] * 3),
        ([[1.0, 9.0, 5.0], []], 3, [False] * 3),
        ([[1.0, 9.0, 5.0]], 4, [False] * 3),
        ([[1.0, 9.0, 5.0]], 2, [True, False, False]),
        ([[0.0, 9.0], [9.0, 0.0]], 1, [True, False, False, True]),
        ([[2.0] * 5], 1, [False] * 5),
        ([[3.0, 3.0, 3.0, 2.0, 1.5]], 2, [False, False, False, False, True]),
        ([[-1.0, -2.0, -3.5]], 1, [False, False, True]),
        ([[0.0, -0.0, -1.0, -1.5]], 2, [False, False, False, True]),
    ],
)
def test_edges(target, groups, top_k, leaving):
    """Margin 1: a candidate exactly that far below stays, and equal candidates stay together."""
    assert check(target, groups, top_k, 1.0) == leaving


def test_what_is_no_number_never_leaves_and_makes_nobody_leave(target):
    groups = [[NAN, 5.0, 0.0], [INF, 5.0, 0.0], [-INF, 5.0, 0.0], [NAN, 5.0, 0.0, 4.0], [NAN, NAN, -INF]]
    leaves = check(target, groups, 2, 1.0)
    assert leaves == [False] * 9 + [False, False, True, False] + [False] * 3


@pytest.mark.parametrize(("sizes", "top_k"), [([1025], 1), ([1024, 3000, 1], 1000), ([127, 128, 129, 0, 5000], 128)])
def test_groups_of_any_size(target, sizes, top_k):
    leaves = check(target, [torch.randn(size).tolist() for size in sizes], top_k, 0.5)
    assert 0 < sum(leaves) < len(leaves)


def test_many_groups(target):
    leaves = check(target, [torch.randn(int(size)).tolist() for size in torch.randint(0, 30, (50,))], 5, 0.25)
    assert 0 < sum(leaves) < len(leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_dtypes(target, dtype):
    check(target, [[(value % 17) / 4 for value in range(40)], [-1.0, 2.5]], 4, 1.25, dtype)


def test_strided_scores(target):
    scores = target(torch.randn(30, 2))[:, 0]
    offsets = target([0, 10, 30])
    again = outranked(scores.contiguous(), offsets, 3, 0.1, backend=target.backend)
    assert torch.equal(outranked(scores, offsets, 3, 0.1, backend=target.backend).leaves, again.leaves)
    assert again.leaves.any()


def test_a_margin_is_compared_in_float32(target):
    """.1 is a little more in float32, as the score is."""
    score = torch.tensor(0.1).item()
    found = outranked(target([score, 0.0]), target([0, 2]), 1, 0.1, backend=target.backend)
    assert found.leaves.tolist() == [False, False]
    assert not outranked(target([3e38, -3e38]), target([0, 2]), 1, 1e39, backend=target.backend).leaves.any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scores": torch.tensor([1, 2])}, TypeError, "scores must be floating point, got torch.int64"),
        ({"scores": torch.zeros(2, 1)}, ValueError, r"scores must have 1 dimension\(s\)"),
        ({"offsets": torch.tensor([0.0, 2.0])}, TypeError, "offsets must be of dtype torch.int64"),
        ({"offsets": torch.tensor([0, 1])}, ValueError, r"offsets must run from 0 to the number of scores \(2\)"),
        ({"offsets": torch.tensor([], dtype=torch.int64)}, ValueError, "offsets must run from 0"),
        ({"offsets": torch.tensor([0, 2, 1, 2])}, ValueError, "offsets must not decrease"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1|top_k must be between 1"),
        ({"top_k": 1.0}, TypeError, "top_k must be an int"),
        ({"margin": -0.5}, ValueError, "margin must be between 0"),
        ({"margin": NAN}, ValueError, "margin must be between 0"),
        ({"margin": "1"}, TypeError, "margin must be a number"),
    ],
)
def test_outranked_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        outranked(**{"scores": torch.zeros(2), "offsets": torch.tensor([0, 2]), "top_k": 1, "margin": 1.0} | changes)
