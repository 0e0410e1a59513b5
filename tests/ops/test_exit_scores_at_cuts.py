"""Exit scoring of label sets and of one score, by distances from cuts and by changes, against loops in plain Python."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geep_triton.ops.exit_scores import score_exits

INF, NAN = math.inf, math.nan
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FINITE = st.floats(-50, 50, width=32)
ANY = st.floats(width=32)


def rounded(value: float) -> float:
    """To float32, in which the ops compute: one subtraction, rounded once, so that the results are the same to the bit."""
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(INF, value)


def distance_by_hand(row, cuts):
    """How many logits are at or above their cut, and the uncertainty."""
    if not all(map(math.isfinite, row)):
        return -1, NAN
    given_labels = sum(logit >= cut for logit, cut in zip(row, cuts, strict=True))
    return given_labels, -min(abs(rounded(logit - cut)) for logit, cut in zip(row, cuts, strict=True))


def same(found, expected):
    return len(found) == len(expected) and all(a == b or (a != a and b != b) for a, b in zip(found, expected, strict=True))


def check_distance(target, logits, cuts, threshold):
    """All outputs of the plain rule."""
    cuts = torch.as_tensor(cuts, dtype=torch.float32)
    scores = score_exits(target(logits), threshold, "distance", cuts=target(cuts), backend=target.backend)
    by_hand = [distance_by_hand(row, cuts.tolist()) for row in logits.float().tolist()]
    assert scores.prediction.tolist() == [prediction for prediction, _ in by_hand]
    assert scores.prediction.dtype == torch.int64
    assert same(scores.uncertainty.tolist(), [uncertainty for _, uncertainty in by_hand])
    assert scores.uncertainty.dtype == torch.float32
    leaves = [uncertainty <= rounded(threshold) for _, uncertainty in by_hand]
    assert scores.leaves.tolist() == leaves
    assert scores.streak.tolist() == [int(leaving) for leaving in leaves]
    assert scores.counts.tolist() == [sum(leaves), sum(math.isnan(uncertainty) for _, uncertainty in by_hand)]


@settings.get_profile("ops")
@given(
    rows=st.lists(st.lists(FINITE | ANY, min_size=3, max_size=3), max_size=6),
    cuts=st.lists(FINITE, min_size=3, max_size=3),
    threshold=st.floats(-60, 1, width=32) | st.just(-INF),
)
def test_distances_equal_a_loop(target, rows, cuts, threshold):
    check_distance(target, torch.tensor(rows, dtype=torch.float32).reshape(-1, 3), cuts, threshold)


@pytest.mark.parametrize("classes", [1, 2, 5, 28, 300, 5000])
@pytest.mark.parametrize("rows", [0, 1, 37, 513])
def test_sizes_of_distances(target, rows, classes):
    rows = min(rows, 8) if classes == 5000 else rows
    check_distance(target, 4 * torch.randn(rows, classes), torch.randn(classes), -2 / classes)


def test_more_labels_than_a_program_holds(target):
    check_distance(target, 4 * torch.randn(3, 20_000), torch.randn(20_000), -1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_distances(target, dtype):
    check_distance(target, (4 * torch.randn(65, 6)).to(dtype), torch.randn(6), -0.2)


def test_a_logit_at_its_cut_is_given_and_is_not_sure(target):
    """It leaves only where the threshold asks for no distance. The uncertainty is 0 there, and not -0."""
    logits = target([[3.0], [2.9999998], [2.0], [4.0]])
    sure, unsure = (
        score_exits(logits, threshold, "distance", cuts=target([3.0]), backend=target.backend) for threshold in (0.0, -1e-9)
    )
    assert sure.prediction.tolist() == [1, 0, 0, 1]
    assert sure.uncertainty.tolist()[0] == 0.0
    assert not sure.uncertainty.signbit()[0]
    assert sure.leaves.tolist() == [True] * 4
    assert unsure.leaves.tolist() == [False, True, True, True]


def test_every_label_must_be_sure(target):
    scores = score_exits(
        target([[4.0, -4.0], [4.0, 0.5], [-4.0, -4.0], [5.0, 3.0]]), -2.0, "distance", cuts=target([0.0, 1.0]),
        backend=target.backend,
    )  # fmt: skip
    assert scores.uncertainty.tolist() == [-4.0, -0.5, -4.0, -2.0]
    assert scores.leaves.tolist() == [True, False, True, True]
    assert scores.prediction.tolist() == [1, 1, 0, 2]


def test_a_set_with_a_logit_that_is_no_finite_number_never_leaves(target):
    rows = [[NAN, 9.0, 9.0], [9.0, INF, 9.0], [9.0, 9.0, -INF], [NAN, INF, -INF], [9.0, 9.0, 9.0]]
    scores = score_exits(target(rows), INF, "distance", cuts=target([0.0, 1.0, 2.0]), backend=target.backend)
    assert scores.leaves.tolist() == [False, False, False, False, True]
    assert scores.uncertainty.isnan().tolist() == [True, True, True, True, False]
    assert scores.prediction.tolist() == [-1, -1, -1, -1, 3]
    assert scores.streak.tolist() == [0, 0, 0, 0, 1]
    assert scores.counts.tolist() == [1, 4]


@pytest.mark.parametrize("classes", [1, 3])
def test_cuts_that_are_not_finite(target, classes):
    """Nothing is close to an infinite cut, and nobody is sure of a cut that is NaN."""
    logits = torch.tensor([[0.5] * classes, [INF] * classes, [-INF] * classes])
    for cut, given_labels in ((INF, 0), (-INF, classes)):
        cuts = target([cut] * classes)
        scores = score_exits(target(logits), -1e30, "distance", cuts=cuts, backend=target.backend)
        assert same(scores.uncertainty.tolist(), [-INF, NAN, NAN])
        assert scores.prediction.tolist() == [given_labels, -1, -1]
        assert scores.counts.tolist() == [1, 2]
    cuts = torch.zeros(classes)
    cuts[-1] = NAN
    scores = score_exits(target(logits), INF, "distance", cuts=target(cuts), backend=target.backend)
    assert scores.counts.tolist() == [0, 3]
    assert scores.prediction.tolist() == [-1, -1, -1]


def test_large_distances(target):
    check_distance(target, torch.tensor([[3e38, 3e38], [-3e38, 3e38]]), [-3e38, -3e38], -3e38)


def test_cuts_and_logits_that_are_not_contiguous(target):
    logits, cuts = target(torch.randn(5, 6)), target(torch.randn(5, 2))
    again = score_exits(logits.T.contiguous(), -0.1, "distance", cuts=cuts[:, 1].contiguous(), backend=target.backend)
    scores = score_exits(logits.T, -0.1, "distance", cuts=cuts[:, 1], backend=target.backend)
    assert torch.equal(scores.uncertainty, again.uncertainty)
    assert torch.equal(scores.prediction, again.prediction)


def memory(scores):
    return {"previous": scores.prediction, "streak": scores.streak}


def streaks(sure, patience):
    """The exit (index) at which a sample leaves, None for never."""
    streak = 0
    for index, one in enumerate(sure):
        streak = streak + 1 if one else 0
        if streak >= patience:
            return index
    return None


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_with_distances(target, classes, patience):
    layers, cuts = [2 * torch.randn(200, classes) for _ in range(6)], torch.randn(classes)
    before, left = {}, [None] * 200
    for index, logits in enumerate(layers):
        scores = score_exits(
            target(logits), -0.3, "distance", patience=patience, cuts=target(cuts), backend=target.backend, **before
        )
        for row, leaves in enumerate(scores.leaves.tolist()):
            left[row] = index if leaves and left[row] is None else left[row]
        before = memory(scores)
    by_hand = [
        [distance_by_hand(logits[row].tolist(), cuts.tolist())[1] <= rounded(-0.3) for logits in layers] for row in range(200)
    ]
    assert left == [streaks(sure, patience) for sure in by_hand]
    assert set(left) >= {patience - 1, patience}


def change_by_hand(scores):
    """The uncertainty of one sample at each exit, of its scores there."""
    found, before = [], NAN
    for score in scores:
        number = math.isfinite(score)
        found.append((INF if math.isnan(before) else abs(rounded(score - before))) if number else NAN)
        before = score if number else NAN
    return found


def check_change(target, layers, threshold, patience=1):
    """All outputs at each exit, given what the exit before gave; `layers` are of [N, 1]."""
    rows = [[logits.float()[row].item() for logits in layers] for row in range(layers[0].shape[0])]
    uncertainties = [change_by_hand(row) for row in rows]
    streak, before = [0] * len(rows), {}
    for index, logits in enumerate(layers):
        scores = score_exits(target(logits), threshold, "change", patience=patience, backend=target.backend, **before)
        expected = [row[index] for row in uncertainties]
        assert scores.prediction.dtype == scores.uncertainty.dtype == torch.float32
        assert same(scores.prediction.tolist(), [row[index] if math.isfinite(row[index]) else NAN for row in rows])
        assert same(scores.uncertainty.tolist(), expected)
        streak = [
            before_ + 1 if uncertainty < INF and uncertainty <= rounded(threshold) else 0
            for before_, uncertainty in zip(streak, expected, strict=True)
        ]
        assert scores.streak.tolist() == streak
        assert scores.leaves.tolist() == [one >= patience for one in streak]
        assert scores.counts.tolist() == [sum(one >= patience for one in streak), sum(map(math.isnan, expected))]
        before = memory(scores)


@settings.get_profile("ops")
@given(
    layers=st.integers(0, 5).flatmap(
        lambda rows: st.lists(st.lists(FINITE | ANY, min_size=rows, max_size=rows), min_size=1, max_size=4)
    ),
    threshold=st.floats(0, 60, width=32) | st.just(INF),
    patience=st.integers(1, 2),
)
def test_changes_equal_a_loop(target, layers, threshold, patience):
    check_change(target, [torch.tensor(scores)[:, None] for scores in layers], threshold, patience)


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 37, 1500])
def test_sizes_and_patience_of_changes(target, rows, patience):
    check_change(target, [torch.randn(rows, 1) for _ in range(5)], 0.7, patience)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_changes(target, dtype):
    check_change(target, [torch.randn(65, 1).to(dtype) for _ in range(3)], 0.5)


@pytest.mark.parametrize("threshold", [0.0, 1.0, 1e300, INF])
def test_nobody_leaves_at_the_first_exit_by_a_change(target, threshold):
    scores = score_exits(target([[1.0], [0.0], [NAN]]), threshold, "change", backend=target.backend)
    assert same(scores.uncertainty.tolist(), [INF, INF, NAN])
    assert scores.leaves.tolist() == [False] * 3
    assert scores.counts.tolist() == [0, 1]


def test_a_change_as_large_as_the_threshold_is_sure(target):
    """0 asks for equal scores."""
    previous, streak = target([1.0, 1.0, 1.0, NAN]), target([0, 3, 0, 2], torch.int32)
    logits = target([[1.5], [1.0], [0.25], [1.0]])
    scores, equal = (
        score_exits(logits, threshold, "change", previous=previous, streak=streak, backend=target.backend)
        for threshold in (0.5, 0)
    )
    assert scores.uncertainty.tolist() == [0.5, 0.0, 0.75, INF]
    assert scores.streak.tolist() == [1, 4, 0, 0]
    assert scores.leaves.tolist() == [True, True, False, False]
    assert equal.leaves.tolist() == [False, True, False, False]


def test_what_is_no_finite_score_breaks_a_streak(target):
    """The exit after it has nothing to compare its score with."""
    check_change(
        target, [torch.full((3, 1), 1.0), torch.tensor([[NAN], [INF], [-INF]])] + [torch.full((3, 1), 1.0)] * 3, 0.1, 2
    )


def test_a_score_is_remembered_as_it_was(target):
    """A prediction is no view of the logits, which their owner may overwrite."""
    logits = target([[1.0], [2.0]])
    scores = score_exits(logits, 0.1, "change", backend=target.backend)
    logits.zero_()
    assert scores.prediction.tolist() == [1.0, 2.0]


CUTS = {"criterion": "distance", "cuts": torch.zeros(2)}
CHANGE = {"criterion": "change"}


@pytest.mark.parametrize(
    ("logits", "options", "message"),
    [
        (torch.zeros(3, 2), {"criterion": "distance"}, "'distance' needs cuts, one for each logit"),
        (torch.zeros(3, 3), CUTS, r"cuts must have shape \(3,\), got \(2,\)"),
        (torch.zeros(3, 2), {**CUTS, "cuts": torch.zeros(2, 1)}, r"cuts must have 1 dimension\(s\), got shape \(2, 1\)"),
        (
            torch.zeros(3, 2),
            {**CUTS, "cuts": torch.zeros(2, device="meta")},
            "cuts must be on the device of the logits, cpu, got meta",
        ),
        (torch.zeros(3, 2), {**CUTS, "criterion": "margin"}, "cuts are for criterion 'distance', got some for 'margin'"),
        (torch.zeros(3, 1), {**CUTS, "criterion": "change"}, "cuts are for criterion 'distance', got some for 'change'"),
        (torch.zeros(3, 0), CUTS, r"needs at least one logit a row, got logits of shape \(3, 0\)"),
        (torch.zeros(3, 2), {**CUTS, "threshold": NAN}, "threshold must be between"),
        (torch.zeros(3, 2), {**CUTS, "rule": "agreement"}, "'agreement' compares classes, which criterion 'distance' has not"),
        (torch.zeros(3, 1), {**CHANGE, "rule": "agreement"}, "'agreement' compares classes, which criterion 'change' has not"),
        (torch.zeros(3, 2), CHANGE, r"'change' is for one score, got logits of shape \(3, 2\)"),
        (torch.zeros(3, 0), CHANGE, r"'change' is for one score, got logits of shape \(3, 0\)"),
        (torch.zeros(3, 1), {**CHANGE, "threshold": -0.1}, "threshold must be between 0.0 and inf, got -0.1"),
        (torch.zeros(3, 1), {**CHANGE, "previous": torch.zeros(3)}, "previous and streak must come together"),
        (
            torch.zeros(3, 1),
            {**CHANGE, "previous": torch.zeros(2), "streak": torch.zeros(2).int()},
            r"previous must have shape \(3,\)",
        ),
    ],
)
def test_score_exits_at_cuts_refuses(logits, options, message):
    with pytest.raises(ValueError, match=message):
        score_exits(logits, **{"threshold": 0.5, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "distance", "cuts": [0.0]}, "cuts must be a torch.Tensor, got list"),
        ({"criterion": "distance", "cuts": torch.zeros(1, dtype=torch.float64)}, "cuts must be of dtype torch.float32"),
        (
            {**CHANGE, "previous": torch.zeros(3).long(), "streak": torch.zeros(3).int()},
            "previous must be of dtype torch.float32",
        ),
        (
            {"criterion": "distance", "cuts": torch.zeros(1), "previous": torch.zeros(3), "streak": torch.zeros(3).int()},
            "previous must be of dtype torch.int64",
        ),
    ],
)
def test_score_exits_at_cuts_refuses_types(options, message):
    with pytest.raises(TypeError, match=message):
        score_exits(torch.zeros(3, 1), 0.5, **options)
