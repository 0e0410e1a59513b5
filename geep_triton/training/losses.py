"""Losses as pure functions of logits and labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """KL(softmax(teacher) || softmax(student)), mean over the batch; no gradient reaches the teacher.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].

    Returns:
        Scalar (FastBERT, eq. 8; GEEP's L2 term).
    """
    return F.kl_div(
        student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1), reduction="batchmean", log_target=True
    )


def geep_loss(exit_logits: Sequence[torch.Tensor], shared_logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """GEEP's one-step loss, L1 + L2 (Li et al., doi 10.1007/s11704-022-2341-9; alibaba/EasyNLP, geep_classification).

    L1 = sum of CE(t(T_L(h_k)), y) over the early exits k and k = L-1 (the full model).
    L2 = sum over the early exits k of KL(sg softmax(full model) || softmax(s_k(h_k))).

    Args:
        exit_logits: one [B, C] per exit, the last being the full model's.
        shared_logits: one [B, C] per early exit below layer L-1: the last layer and last head on h_k.
        labels: [B] int64.

    Returns:
        Scalar; both terms reach the backbone.
    """
    *students, full = exit_logits
    shared_exit = sum(F.cross_entropy(logits, labels) for logits in (*shared_logits, full))
    distillation = sum(distillation_loss(logits, full) for logits in students)
    return shared_exit + distillation
