"""Exit scoring: logits -> prediction, uncertainty, and who may leave."""

from __future__ import annotations

import torch

from geep_triton.checks import check_choice, check_number, check_tensor
from geep_triton.reference import exit_scores as reference

CRITERIA = tuple(reference.CRITERIA)


def score_exits(
    logits: torch.Tensor, threshold: float, criterion: str = "normalized_entropy"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score one exit's answers.

    Args:
        logits: [N, C] floating point, C >= 2.
        threshold: a sample may leave when its uncertainty is at or under it, 0..1.
        criterion: "normalized_entropy" (FastBERT, Liu et al. 2020, eq. 9).

    Returns:
        prediction [N] int64 (argmax), uncertainty [N] float32 in [0, 1], leaves [N] bool. NaN logits give NaN uncertainty
        and never leave.

    Raises:
        ValueError: fewer than two classes (regression has no such criterion), unknown criterion, threshold out of range.
    """
    check_tensor("logits", logits, 2)
    if logits.shape[1] < 2:
        raise ValueError(
            f"criterion {criterion!r} needs at least two classes, got logits of shape {tuple(logits.shape)}: "
            "a regression model can only run at full or constant depth"
        )
    check_choice("criterion", criterion, CRITERIA)
    check_number("threshold", threshold, 0.0, 1.0)
    return reference.score_exits(logits, threshold, criterion)
