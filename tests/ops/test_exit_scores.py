"""Exit scoring against a loop in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.exit_scores import CRITERIA, score_exits, score_hidden
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


@pytest.mark.parametrize("criterion", CRITERIA)
@settings.get_profile("ops")
@given(
    rows=st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), max_size=6),
    threshold=st.floats(0, 1, width=32),
)
def test_criteria_equal_a_loop(target, criterion, rows, threshold):
    check(target, torch.tensor(rows, dtype=torch.float32).reshape(-1, 3), criterion, threshold)


@pytest.mark.parametrize("criterion", CRITERIA)
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


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("shift", [1e4, -1e4, 3e38])
def test_large_logits_are_stable(target, criterion, shift):
    scores = score_exits(target([[shift, shift], [shift, shift / 2]]), ALWAYS.get(criterion, 1.0), criterion, top_k=2,
                         backend=target.backend)  # fmt: skip
    assert scores.uncertainty.isfinite().all()
    assert scores.leaves.all()


@pytest.mark.parametrize("criterion", CRITERIA)
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


@pytest.mark.parametrize("criterion", CRITERIA)
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


# The fused form


def hidden_by_hand(hidden, mask, weight, bias, pooling):
    hidden = hidden.double()
    pooled = []
    for row, real in zip(hidden, mask, strict=True):
        chosen = row[real != 0] if pooling == "mean" else row[:1]
        pooled.append(chosen.mean(0) if len(chosen) else torch.zeros(hidden.shape[2], dtype=torch.float64))
    return torch.stack(pooled) @ weight.double().T + bias.double()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(
    ("rows", "length", "hidden_size", "classes"), [(1, 1, 1, 2), (5, 9, 80, 3), (3, 130, 384, 17), (2, 512, 1040, 32)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_score_hidden(target, pooling, rows, length, hidden_size, classes, dtype):
    hidden, weight = torch.randn(rows, length, hidden_size).to(dtype), torch.randn(classes, hidden_size).to(dtype)
    mask, bias = (torch.rand(rows, length) < 0.7).long(), torch.randn(classes).to(dtype)
    mask[:, 0] = 1
    hidden[mask == 0] = NAN  # padding is not read
    logits, scores = score_hidden(*map(target, (hidden, mask, weight, bias)), 0.5, pooling=pooling, backend=target.backend)
    expected = hidden_by_hand(hidden, mask, weight, bias, pooling).float()
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-4, rtol=TOLERANCE)
    again = score_exits(logits, 0.5, backend=target.backend)
    for name, value in vars(scores).items():
        torch.testing.assert_close(value, getattr(again, name), atol=TOLERANCE, rtol=0, equal_nan=True)


def test_score_hidden_edges(target):
    """No rows; a row of padding alone, whose mean is zero; hidden states that are not numbers."""
    weight, bias = target(torch.randn(3, 16)), target(torch.tensor([0.0, 2.0, 1.0]))
    logits, scores = score_hidden(
        target(torch.zeros(0, 4, 16)), target(torch.zeros(0, 4), torch.int64), weight, bias, 0.5, backend=target.backend
    )
    assert logits.shape == (0, 3)
    assert scores.counts.tolist() == [0, 0]
    hidden = torch.randn(2, 4, 16)
    hidden[1, 1, 3] = NAN
    mask = target([[0, 0, 0, 0], [1, 1, 0, 0]])
    logits, scores = score_hidden(target(hidden), mask, weight, bias, 1.0, pooling="mean", backend=target.backend)
    assert logits[0].tolist() == bias.tolist()
    assert scores.prediction.tolist() == [1, -1]
    assert scores.leaves.tolist() == [True, False]


def test_tensors_that_are_not_contiguous(target):
    wide = target(torch.randn(6, 32, 12))
    hidden, mask = wide.transpose(1, 2)[:, ::2], target(torch.ones(6, 12, dtype=torch.int64))[:, ::2]
    weight, bias = target(torch.randn(16, 6, 2))[:, ::2, 0].T.repeat(1, 2), target(torch.randn(3, 4))[:, 1]
    strided, scores = score_hidden(hidden, mask, weight, bias, 0.5, backend=target.backend)
    copies = (value.clone(memory_format=torch.contiguous_format) for value in (hidden, mask, weight, bias))
    plain, _ = score_hidden(*copies, 0.5, backend=target.backend)
    assert torch.equal(strided, plain)
    again = score_exits(strided.T.contiguous().T, 0.5, backend=target.backend)
    assert torch.equal(again.leaves, scores.leaves)


def test_score_hidden_with_many_classes(target):
    hidden, mask = torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.int64)
    weight, bias = torch.randn(100, 8), torch.zeros(100)
    logits, _ = score_hidden(*map(target, (hidden, mask, weight, bias)), 0.5, backend=target.backend)
    torch.testing.assert_close(logits.cpu(), hidden_by_hand(hidden, mask, weight, bias, "cls").float(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(3, 1), {}, "needs at least two classes.*full or constant depth"),
        (torch.zeros(3), {}, r"must have 2 dimension\(s\), got shape \(3,\)"),
        (torch.zeros(3, 2), {"threshold": 1.5}, "threshold must be between"),
        (torch.zeros(3, 2), {"threshold": NAN, "criterion": "energy"}, "threshold must be between"),
        (torch.zeros(3, 2), {"criterion": "vibes"}, "unknown criterion 'vibes'; known: energy, entropy, margin"),
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


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 4), (2, 2), (3, 4), (3,)), r"attention_mask must have shape \(2, 3\), got \(2, 2\)"),
        (((2, 3, 4), (2, 3), (3, 5), (3,)), r"weight must have shape \(3, 4\), got \(3, 5\)"),
        (((2, 3, 4), (2, 3), (3, 4), (2,)), r"bias must have shape \(3,\), got \(2,\)"),
        (((2, 3, 4), (2, 3), (1, 4), (1,)), "needs at least two classes"),
        (((2, 0, 4), (2, 0), (3, 4), (3,)), "at least one token"),
    ],
)
def test_score_hidden_refuses(shapes, message):
    hidden, mask, weight, bias = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        score_hidden(hidden, mask.long(), weight, bias, 0.5)
