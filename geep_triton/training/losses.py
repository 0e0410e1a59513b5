"""Losses as pure functions of logits and labels.

Each is a mean over the batch, so that gradient accumulation and several processes can average it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch of w[y] * CE. Unlike in torch's weighted mean, the sum is not divided by the weights of the batch.

    Args:
        logits: [B, C].
        labels: [B] int64.
        class_weights: [C]. None: all weights are 1.

    Returns:
        Scalar.
    """
    if class_weights is None:
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, class_weights.to(logits), reduction="sum") / labels.numel()


def joint_loss(
    exit_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    exit_weights: Sequence[float] | None = None,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum over the exits of w_i CE_i.

    Args:
        exit_logits: one [B, C] per exit.
        labels: [B] int64.
        exit_weights: one per exit. None: all weights are 1.
        class_weights: [C]. None: all weights are 1.

    Returns:
        Scalar.
    """
    weights = [1.0] * len(exit_logits) if exit_weights is None else exit_weights
    losses = [w * cross_entropy(logits, labels, class_weights) for w, logits in zip(weights, exit_logits, strict=True)]
    return sum(losses, start=exit_logits[0].new_zeros(()))


def distillation_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), a mean over the batch. The teacher gets no gradient.

    Source: Hinton et al. 2015. With T = 1 it is FastBERT, eq. 8, and GEEP's L2 term.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T.

    Returns:
        Scalar.
    """
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    return temperature**2 * F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


def self_distillation_loss(exit_logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum over the early exits of KL(sg softmax(last exit) || softmax(exit)) (FastBERT, eq. 9).

    Args:
        exit_logits: one [B, C] per exit. The last one is the full model's.

    Returns:
        Scalar.
    """
    *students, full = exit_logits
    return sum((distillation_loss(logits, full) for logits in students), start=full.new_zeros(()))


def geep_loss(
    exit_logits: Sequence[torch.Tensor],
    shared_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """GEEP's one-step loss, L1 + L2 (Li et al., doi 10.1007/s11704-022-2341-9; alibaba/EasyNLP, geep_classification).

    L1 = sum of CE(t(T_L(h_k)), y) over the early exits k and over k = L-1 (the full model).
    L2 = sum over the early exits k of KL(sg softmax(full model) || softmax(s_k(h_k))).
    Both terms train the backbone.

    Args:
        exit_logits: one [B, C] per exit. The last one is the full model's.
        shared_logits: one [B, C] per early exit below layer L-1: the last layer and last head applied to h_k.
        labels: [B] int64.
        class_weights: [C], for the cross entropies. None: all weights are 1.

    Returns:
        Scalar.
    """
    return joint_loss([*shared_logits, exit_logits[-1]], labels, class_weights=class_weights) + self_distillation_loss(
        exit_logits
    )
