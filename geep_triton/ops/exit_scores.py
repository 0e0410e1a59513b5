"""Exit scoring: logits -> prediction, uncertainty, and who may leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_choice, check_int, check_number, check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.ops.reference.exit_scores import CRITERIA as REFERENCE_CRITERIA

CRITERIA = tuple(REFERENCE_CRITERIA)
UNBOUNDED = ("entropy", "energy")  # their thresholds are not shares
RULES = ("confidence", "agreement")
# Wider problems, where a row no longer fits a program's registers, go to PyTorch.
MAX_CLASSES = 16384


@dataclass(frozen=True, eq=False)
class ExitScores:
    """How one exit's answers score; tensors on the logits' device.

    Attributes:
        prediction: [N] int64, argmax; -1 where the logits are not numbers.
        uncertainty: [N] float32, low is sure; NaN where the logits hold NaN or +inf, or nothing but -inf.
        leaves: [N] bool, who may be answered here; never where the uncertainty is NaN.
        streak: [N] int32, for how many exits in a row the rule has held.
        counts: [2] int32, how many leave, and how many have logits that are not numbers.
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
        threshold: a sample is sure when its uncertainty is at or under it: 0..1, or any number for "entropy" and "energy".
        criterion: the uncertainty, with p = softmax(logits): "normalized_entropy" (FastBERT, Liu et al. 2020, eq. 9: entropy
            over ln C), "entropy" (DeeBERT), "max_probability" (1 - max p), "margin" (1 - (highest p - second)),
            "top_k_entropy" (normalized entropy among the k highest, for many classes), "energy" (-ln sum exp logits).
        top_k: k of "top_k_entropy".
        rule: what makes a streak: "confidence" (the sample is sure; patience above 1 is PCEE, Zhang et al. 2022) or
            "agreement" (the answer is that of the exit before; PABEE, Zhou et al. 2020; the threshold plays no part).
        patience: a sample leaves once its streak is that long; 1 with "confidence" is the plain threshold.
        previous, streak: [N], prediction and streak of the same rows at the exit before; None at the first exit.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Raises:
        ValueError: fewer than two classes (regression has no such criterion), unknown criterion or rule, threshold out of
            range, patience below 1, top_k below 2, or only one of previous and streak, or of another number of rows.
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
    settings = _settings(logits.shape[0], threshold, criterion, top_k, rule, patience, previous, streak)
    return ExitScores(*op.score_exits(logits, *settings))


def _settings(
    rows: int,
    threshold: float,
    criterion: str,
    top_k: int,
    rule: str,
    patience: int,
    previous: torch.Tensor | None,
    streak: torch.Tensor | None,
) -> tuple[float, str, int, str, int, torch.Tensor | None, torch.Tensor | None]:
    """The implementations' arguments after the logits, checked."""
    check_criterion(threshold, criterion, top_k)
    check_choice("rule", rule, RULES)
    check_int("patience", patience, 1)
    if (previous is None) != (streak is None):
        raise ValueError("previous and streak must come together, got only one")
    for name, value, dtype in (("previous", previous, torch.int64), ("streak", streak, torch.int32)):
        if value is None:
            continue
        check_tensor(name, value, 1, dtype)
        if value.shape != (rows,):
            raise ValueError(f"{name} must have shape {(rows,)}, got {tuple(value.shape)}")
    return threshold, criterion, top_k, rule, patience, previous, streak


def check_criterion(threshold: float, criterion: str, top_k: int = 5) -> None:
    """Raise ValueError unless the criterion is known and the threshold can be one of its values."""
    check_choice("criterion", criterion, CRITERIA)
    check_int("top_k", top_k, 2)
    if criterion in UNBOUNDED:
        check_number("threshold", threshold)
    else:
        check_number("threshold", threshold, 0.0, 1.0)
