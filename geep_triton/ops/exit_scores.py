"""Exit scoring: from logits to predictions, uncertainties and the samples that may leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_int, check_number, check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.reference.exit_scores import CRITERIA as REFERENCE_CRITERIA

CRITERIA = tuple(REFERENCE_CRITERIA)
UNBOUNDED = ("entropy", "energy")  # the thresholds of these are not in 0..1
RULES = ("confidence", "agreement")
# PyTorch runs wider problems, because a row no longer fits the registers of a program.
MAX_CLASSES = 16384


@dataclass(frozen=True, eq=False)
class ExitScores:
    """The scores of one exit's answers, on the device of the logits.

    Attributes:
        prediction: [N] int64, argmax; -1 if the logits are not numbers.
        uncertainty: [N] float32, low means sure. NaN if the logits contain NaN or +inf, or only -inf.
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
    backend: str | None = None,
) -> ExitScores:
    """Score one exit's answers.

    Args:
        logits: [N, C] floating point, C >= 2.
        threshold: a sample is sure if its uncertainty is at most this: 0..1, or any number for "entropy" and "energy".
        criterion: the uncertainty, where p = softmax(logits): "normalized_entropy" (entropy / ln C; FastBERT, Liu et al. 2020,
            eq. 9), "entropy" (DeeBERT), "max_probability" (1 - max p), "margin" (1 - (highest p - second highest p)),
            "top_k_entropy" (normalized entropy of the k highest, for many classes), or "energy" (-ln sum exp logits).
        top_k: k of "top_k_entropy".
        rule: the rule that a streak counts: "confidence" (the sample is sure; patience above 1 is PCEE, Zhang et al. 2022) or
            "agreement" (the answer is that of the previous exit; PABEE, Zhou et al. 2020; the threshold is not used).
        patience: length of the streak at which a sample leaves. 1 with "confidence" is the plain threshold.
        previous: [N] int64, predictions of the same rows at the previous exit. None at the first exit.
        streak: [N] int32, streaks of the same rows at the previous exit. None at the first exit.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Raises:
        ValueError: there are fewer than two classes (a regression has no such criterion), the criterion or the rule is unknown,
            the threshold is out of range, patience is below 1, top_k is below 2, or only one of previous and streak is given,
            or their number of rows differs.
        TypeError: the logits are not floating point, or an argument has another type.
    """
    check_tensor("logits", logits, 2)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.shape[1] < 2:
        raise ValueError(
            f"criterion {criterion!r} needs at least two classes, got logits of shape {tuple(logits.shape)}: "
            "a regression model can only run at full or constant depth"
        )
    backend = "torch" if logits.shape[1] > MAX_CLASSES else backend
    op = implementation("exit_scores", logits.device, backend)
    check_criterion(threshold, criterion, top_k)
    check_choice("rule", rule, RULES)
    check_int("patience", patience, 1)
    _check_earlier(logits.shape[0], previous, streak)
    return ExitScores(*op.score_exits(logits, threshold, criterion, top_k, rule, patience, previous, streak))


def _check_earlier(rows: int, previous: torch.Tensor | None, streak: torch.Tensor | None) -> None:
    """Raise unless `previous` and `streak` are both there, with so many rows, or both missing."""
    if (previous is None) != (streak is None):
        raise ValueError("previous and streak must come together, got only one")
    for name, value, dtype in (("previous", previous, torch.int64), ("streak", streak, torch.int32)):
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
    if criterion in UNBOUNDED:
        check_number("threshold", threshold)
    else:
        check_number("threshold", threshold, 0.0, 1.0)
