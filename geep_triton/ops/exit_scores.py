"""Exit scoring: from logits to predictions, uncertainties and the samples that may leave."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_int, check_number, check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.reference.exit_scores import CLASS_CRITERIA as REFERENCE_CRITERIA

CLASS_CRITERIA = tuple(REFERENCE_CRITERIA)  # of classes that compete
CRITERIA = (*CLASS_CRITERIA, "distance", "change")
UNBOUNDED = ("entropy", "energy", "distance")  # the thresholds of these are any number
RULES = ("confidence", "agreement")
# PyTorch runs wider problems, because a row no longer fits the registers of a program.
MAX_CLASSES = 16384
# The largest threshold of a change, so that even with an infinite one nobody leaves by a change that was not measured.
LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class ExitScores:
    """The scores of one exit's answers, on the device of the logits.

    Attributes:
        prediction: [N] int64, argmax; with "distance" how many logits are at or above their cut; -1 if the logits are not
            numbers. With "change" [N] float32, the score itself, NaN if it is not finite.
        uncertainty: [N] float32, low means sure. NaN if the logits contain NaN or +inf, or only -inf; with "distance" and
            "change" also if one of them is -inf.
        leaves: [N] bool, whether the sample may be answered here. False if the uncertainty is NaN.
        streak: [N] int32, the number of consecutive exits for which the rule has held.
        counts: [2] int32, the number of samples that leave, and the number whose logits are not numbers.
    """

    prediction: torch.Tensor
    uncertainty: torch.Tensor
    leaves: torch.Tensor
    streak: torch.Tensor
    counts: torch.Tensor


def score_exits(
    logits: torch.Tensor,
    threshold: float,
    criterion: str = "normalized_entropy",
    *,
    top_k: int = 5,
    rule: str = "confidence",
    patience: int = 1,
    previous: torch.Tensor | None = None,
    streak: torch.Tensor | None = None,
    cuts: torch.Tensor | None = None,
    backend: str | None = None,
) -> ExitScores:
    """Score one exit's answers.

    Criteria of classes, where p = softmax(logits) and C >= 2: "normalized_entropy" (entropy / ln C; FastBERT, Liu et al. 2020,
    eq. 9), "entropy" (DeeBERT), "max_probability" (1 - max p), "margin" (1 - (highest p - second highest p)),
    "top_k_entropy" (normalized entropy of the k highest, for many classes), and "energy" (-ln sum exp logits).

    A criterion of label sets and of one score, C >= 1: "distance" (-min_j |logit_j - cut_j|, *our reconstruction*: the margin
    of answers that are decided at a cut). A sample leaves where every logit is at least -threshold away from its cut.

    A criterion of one score, C = 1: "change" (|logit - previous|; PABEE's patience for regression, Zhou et al. 2020,
    section 3). It is +inf, and nobody leaves, where there is no previous score.

    Args:
        logits: [N, C] floating point. They are compared in float32.
        threshold: a sample is sure if its uncertainty is at most this: 0..1; at least 0 for "change", in units of the logit;
            any number for "entropy", "energy" and "distance", whose uncertainty is at most 0, in units of the logits.
        criterion: the uncertainty.
        top_k: k of "top_k_entropy".
        rule: the rule that a streak counts: "confidence" (the sample is sure; patience above 1 is PCEE, Zhang et al. 2022) or
            "agreement" (the answer is that of the previous exit; PABEE, Zhou et al. 2020; the threshold is not used), which
            is of classes only.
        patience: length of the streak at which a sample leaves. 1 with "confidence" is the plain threshold.
        previous: [N] int64 (float32 with "change"), predictions of the same rows at the previous exit; NaN with "change": there
            is none. None at the first exit.
        streak: [N] int32, streaks of the same rows at the previous exit. None at the first exit.
        cuts: [C] float32 on the device of the logits, for "distance" only, which needs them: the logit from which on a label is
            given. An infinite cut is one that no logit is close to. Where a cut is NaN no row has an uncertainty.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Raises:
        ValueError: the logits do not have as many columns as the criterion needs, the criterion or the rule is unknown or they
            do not go together, the threshold is out of range, patience is below 1, top_k is below 2, only one of previous and
            streak is given, or their number of rows differs, or cuts are missing, not wanted, of another shape or on another
            device.
        TypeError: the logits are not floating point, or an argument has another type.
    """
    check_tensor("logits", logits, 2)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    check_criterion(threshold, criterion, top_k)
    _check_columns(logits, criterion)
    backend = "torch" if logits.shape[1] > MAX_CLASSES else backend
    op = implementation("exit_scores", logits.device, backend)
    check_choice("rule", rule, RULES)
    if rule == "agreement" and criterion not in CLASS_CRITERIA:
        raise ValueError(f"rule 'agreement' compares classes, which criterion {criterion!r} has not; use rule 'confidence'")
    check_int("patience", patience, 1)
    _check_earlier(logits.shape[0], criterion, previous, streak)
    _check_cuts(logits, criterion, cuts)
    if criterion == "change":
        threshold = min(threshold, LARGEST)
    return ExitScores(*op.score_exits(logits, threshold, criterion, top_k, rule, patience, previous, streak, cuts))


def _check_columns(logits: torch.Tensor, criterion: str) -> None:
    """Raise unless the logits have as many columns as the criterion needs."""
    columns = logits.shape[1]
    if criterion == "change" and columns != 1:
        raise ValueError(f"criterion 'change' is for one score, got logits of shape {tuple(logits.shape)}")
    if criterion == "distance" and columns == 0:
        raise ValueError(f"criterion 'distance' needs at least one logit a row, got logits of shape {tuple(logits.shape)}")
    if criterion in CLASS_CRITERIA and columns < 2:
        raise ValueError(
            f"criterion {criterion!r} needs at least two classes, got logits of shape {tuple(logits.shape)}: "
            "the criteria of one score are 'distance' and 'change'"
        )


def _check_cuts(logits: torch.Tensor, criterion: str, cuts: torch.Tensor | None) -> None:
    """Raise unless there is a cut for every column, or none for a criterion that uses none."""
    if criterion != "distance":
        if cuts is not None:
            raise ValueError(f"cuts are for criterion 'distance', got some for {criterion!r}")
        return
    if cuts is None:
        raise ValueError("criterion 'distance' needs cuts, one for each logit of a row")
    check_tensor("cuts", cuts, 1, torch.float32)
    if cuts.shape != logits.shape[1:]:
        raise ValueError(f"cuts must have shape {tuple(logits.shape[1:])}, got {tuple(cuts.shape)}")
    if cuts.device != logits.device:
        raise ValueError(f"cuts must be on the device of the logits, {logits.device}, got {cuts.device}")


def _check_earlier(rows: int, criterion: str, previous: torch.Tensor | None, streak: torch.Tensor | None) -> None:
    """Raise unless `previous` and `streak` are both there, with so many rows, or both missing."""
    if (previous is None) != (streak is None):
        raise ValueError("previous and streak must come together, got only one")
    answer = torch.float32 if criterion == "change" else torch.int64
    for name, value, dtype in (("previous", previous, answer), ("streak", streak, torch.int32)):
        if value is None:
            continue
        check_tensor(name, value, 1, dtype)
        if value.shape != (rows,):
            raise ValueError(f"{name} must have shape {(rows,)}, got {tuple(value.shape)}")


def check_criterion(threshold: float, criterion: str, top_k: int = 5) -> None:
    """Check that the criterion is known and that the threshold can be one of its values.

    Args:
        threshold: as in `score_exits`.
        criterion: as in `score_exits`.
        top_k: as in `score_exits`.

    Raises:
        ValueError: they are not.
        TypeError: a value has another type.
    """
    check_choice("criterion", criterion, CRITERIA)
    check_int("top_k", top_k, 2)
    low = -math.inf if criterion in UNBOUNDED else 0.0
    high = 1.0 if criterion in CLASS_CRITERIA and criterion not in UNBOUNDED else math.inf
    check_number("threshold", threshold, low, high)
