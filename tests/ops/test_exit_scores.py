"""Exit scoring against a loop in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.exit_scores import CLASS_CRITERIA, score_exits
from tests.ops.tolerances import TOLERANCE

INF, NAN = math.inf, math.nan
ALWAYS = {"energy": INF, "entropy": INF}  # thresholds at which every number is sure


def softmax_by_hand(logits):
    top = max(logits)
    weights = [math.exp(x - top) for x in logits]
    total = sum(weights)
    return [weight / total for weight in weights]


def entropy_by_hand(logits):
    return -sum(p * math.log(p) for p in softmax_by_hand(logits) if p > 0)


def uncertainty_by_hand(logits, criterion, top_k):
    ranked = sorted(softmax_by_hand(logits), reverse=True)
    if criterion == "normalized_entropy":
        return entropy_by_hand(logits) / math.log(len(logits))
    if criterion == "entropy":
        return entropy_by_hand(logits)
    if criterion == "max_probability":
        return 1 - ranked[0]
    if criterion == "margin":
        return 1 - (ranked[0] - ranked[1])
    if criterion == "top_k_entropy":
        best = sorted(logits, reverse=True)[:top_k]
        return entropy_by_hand(best) / math.log(len(best))
    return -(max(logits) + math.log(sum(math.exp(x - max(logits)) for x in logits)))


def check(target, logits, criterion, threshold, top_k=3):
    """All outputs of the plain rule, for rows of finite logits."""
    scores = score_exits(target(logits), threshold, criterion, top_k=top_k, backend=target.backend)
    rows = logits.float().tolist()
    assert scores.prediction.tolist() == [row.index(max(row)) for row in rows]
    expected = [uncertainty_by_hand(row, criterion, top_k) for row in rows]
    assert scores.uncertainty.tolist() == pytest.approx(expected, abs=TOLERANCE, rel=TOLERANCE)
    assert scores.uncertainty.dtype == torch.float32
    leaves = [uncertainty <= threshold for uncertainty in scores.uncertainty.tolist()]
    assert scores.leaves.tolist() == leaves
    assert scores.streak.tolist() == [int(leaving) for leaving in leaves]
    assert scores.counts.tolist() == [sum(leaves), 0]


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
@settings.get_profile("ops")
@given(
    rows=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), max_size=6),
    threshold=st.floats(0, 1, width=32),
)
def test_criteria_equal_a_loop(target, criterion, rows, threshold):
    check(target, torch.tensor(rows, dtype=torch.float32).reshape(-1, 3), criterion, threshold)


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
@pytest.mark.parametrize(("rows", "classes"), [(0, 2), (1, 2), (513, 2), (37, 4), (33, 5), (3, 100), (2, 1000), (3, 5000)])
def test_sizes(target, criterion, rows, classes):
    check(target, 4 * torch.randn(rows, classes), criterion, 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes(target, dtype):
    check(target, (4 * torch.randn(65, 6)).to(dtype), "normalized_entropy", 0.5)


def test_more_classes_than_a_program_holds(target):
    check(target, 4 * torch.randn(2, 20_000), "normalized_entropy", 0.5)


@pytest.mark.parametrize("classes", [2, 7, 5000])
def test_ends_of_the_entropy(target, classes):
    logits = torch.zeros(2, classes)
    logits[1, 0] = 1e4
    scores = score_exits(target(logits), 0.5, backend=target.backend)
    assert scores.uncertainty.tolist() == [pytest.approx(1.0, abs=TOLERANCE), 0.0]
    assert scores.leaves.tolist() == [False, True]


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38])
def test_large_logits_are_stable(target, criterion, shift):
    scores = score_exits(target([[shift, shift], [shift, shift / 2]]), ALWAYS.get(criterion, 1.0), criterion, top_k=2,
                         backend=target.backend)  # fmt: skip
    assert scores.uncertainty.isfinite().all()
    assert scores.leaves.all()


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
def test_what_is_no_number_never_leaves(target, criterion):
    logits = target([[NAN, 0.0, 1.0], [INF, 0.0, 0.0], [-INF, -INF, -INF], [0.0, 1.0, NAN], [-INF, 2.0, 0.0]])
    scores = score_exits(logits, ALWAYS.get(criterion, 1.0), criterion, backend=target.backend)
    assert scores.leaves.tolist() == [False, False, False, False, True]
    assert scores.uncertainty.isnan().tolist() == [True, True, True, True, False]
    assert scores.prediction.tolist() == [-1, -1, -1, -1, 1]
    assert scores.counts.tolist() == [1, 4]


def test_minus_infinity_is_a_class_that_cannot_be(target):
    scores = score_exits(target([[-INF, 0.0, 0.0], [-INF, -INF, 3.0]]), 0.5, backend=target.backend)
    assert scores.uncertainty.tolist() == [pytest.approx(math.log(2) / math.log(3), abs=TOLERANCE), 0.0]


@pytest.mark.parametrize("criterion", CLASS_CRITERIA)
def test_ties(target, criterion):
    """The first of equal classes is the answer; two equal best classes leave no margin."""
    check(target, torch.tensor([[1.0, 5.0, 5.0, 0.0], [2.0, 2.0, 2.0, 2.0]]), criterion, 0.5)
    margin = score_exits(target([[1.0, 5.0, 5.0]]), 0.99, "margin", backend=target.backend)
    assert margin.uncertainty.tolist() == [1.0]


def memory(scores):
    return {"previous": scores.prediction, "streak": scores.streak}


def patience_by_hand(layers, rule, threshold, patience):
    """Per row the exit (index) at which it leaves, None for never; PABEE's and PCEE's loops for one sample."""
    exits = []
    for row in range(layers[0].shape[0]):
        streak, previous, left = 0, None, None
        for index, logits in enumerate(layers):
            values = logits[row].tolist()
            answer = values.index(max(values))
            sure = uncertainty_by_hand(values, "normalized_entropy", 0) <= threshold
            streak = streak + 1 if (sure if rule == "confidence" else answer == previous) else 0
            previous = answer
            if streak >= patience and left is None:
                left = index
        exits.append(left)
    return exits


@pytest.mark.parametrize("rule", ["confidence", "agreement"])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience(target, rule, patience):
    layers = [3 * torch.randn(200, 3) for _ in range(6)]
    before, left = {}, [None] * 200
    for index, logits in enumerate(layers):
        scores = score_exits(target(logits), 0.6, rule=rule, patience=patience, backend=target.backend, **before)
        for row, leaves in enumerate(scores.leaves.tolist()):
            left[row] = index if leaves and left[row] is None else left[row]
        before = memory(scores)
    assert left == patience_by_hand(layers, rule, 0.6, patience)
    assert (patience if rule == "agreement" else patience - 1) in left


def test_nan_breaks_a_streak(target):
    first = score_exits(target([[0.0, 9.0]]), 0.5, rule="agreement", backend=target.backend)
    broken = score_exits(target([[NAN, 9.0]]), 0.5, rule="agreement", backend=target.backend, **memory(first))
    after = score_exits(target([[0.0, 9.0]]), 0.5, rule="agreement", backend=target.backend, **memory(broken))
    again = score_exits(target([[NAN, 9.0]]), 0.5, rule="agreement", backend=target.backend, **memory(broken))
    assert [s.leaves.item() for s in (first, broken, after, again)] == [False] * 4


def test_logits_that_are_not_contiguous(target):
    strided = target(torch.randn(3, 6)).T
    again = score_exits(strided.contiguous(), 0.5, backend=target.backend)
    assert torch.equal(score_exits(strided, 0.5, backend=target.backend).uncertainty, again.uncertainty)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(3, 1), {}, "needs at least two classes.*of one score are 'distance' and 'change'"),
        (torch.zeros(3), {}, r"must have 2 dimension\(s\), got shape \(3,\)"),
        (torch.zeros(3, 2), {"threshold": 1.5}, "threshold must be between"),
        (torch.zeros(3, 2), {"threshold": NAN, "criterion": "energy"}, "threshold must be between"),
        (
            torch.zeros(3, 2),
            {"criterion": "vibes"},
            "unknown criterion 'vibes'; known: change, distance, energy, entropy",
        ),
        (torch.zeros(3, 2), {"rule": "mood"}, "unknown rule 'mood'; known: agreement, confidence"),
        (torch.zeros(3, 2), {"patience": 0}, "patience must be at least 1, got 0"),
        (torch.zeros(3, 2), {"top_k": 1}, "top_k must be at least 2, got 1"),
        (torch.zeros(3, 2), {"streak": torch.zeros(3)}, "previous and streak must come together"),
        (torch.zeros(3, 2), memory(score_exits(torch.zeros(2, 2), 0.5)), r"previous must have shape \(3,\), got \(2,\)"),
    ],
)
def test_score_exits_refuses(logits, options, message):
    with pytest.raises(ValueError, match=message):
        score_exits(logits, **{"threshold": 0.5, **options})
