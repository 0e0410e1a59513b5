"""Losses as pure functions of logits and labels.

Each is a mean over the batch, so that gradient accumulation and several processes can average it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from geep_triton.answers import is_logistic, kind_of
from geep_triton.config import MultiExitBertConfig


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


def squared_loss(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch of (score - label)^2.

    Args:
        logits: [B, 1].
        labels: [B] floating point.
        class_weights: None.

    Returns:
        Scalar.
    """
    return F.mse_loss(logits[:, 0].float(), labels.float())


def logistic_loss(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean over the batch and the labels of w_c * binary cross entropy, as transformers' for multi-label models.

    Args:
        logits: [B, C].
        labels: [B, C] floating point, or [B] for C = 1: the probability that a label is given, mostly 0 or 1.
        class_weights: [C]. None: all weights are 1.

    Returns:
        Scalar.
    """
    targets = labels.to(logits).view(logits.shape)
    weights = None if class_weights is None else class_weights.to(logits)
    return F.binary_cross_entropy_with_logits(logits, targets, weights)


def joint_loss(
    exit_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    exit_weights: Sequence[float] | None = None,
    class_weights: torch.Tensor | None = None,
    objective: Objective | None = None,
) -> torch.Tensor:
    """Sum over the exits of w_i times the loss of exit i.

    Args:
        exit_logits: one [B, C] per exit.
        labels: as the objective takes them: [B] int64 for classes.
        exit_weights: one per exit. None: all weights are 1.
        class_weights: [C]. None: all weights are 1.
        objective: the loss of an exit. None: cross entropy.

    Returns:
        Scalar.
    """
    weights = [1.0] * len(exit_logits) if exit_weights is None else exit_weights
    learn = (objective or CLASSES).learn
    losses = [w * learn(logits, labels, class_weights) for w, logits in zip(weights, exit_logits, strict=True)]
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


def squared_imitation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Mean over the batch of (student - teacher)^2. The teacher gets no gradient. A temperature would cancel out.

    Args:
        student_logits: [B, 1].
        teacher_logits: [B, 1].
        temperature: not used.

    Returns:
        Scalar.
    """
    return F.mse_loss(student_logits.float(), teacher_logits.detach().float())


def logistic_imitation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """T^2 KL(sigmoid(teacher / T) || sigmoid(student / T)), a mean over the batch and the labels. The teacher gets no gradient.

    This is `distillation_loss` for labels that do not compete.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C].
        temperature: T.

    Returns:
        Scalar.
    """
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    targets = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, targets)
    return temperature**2 * (F.binary_cross_entropy_with_logits(student, targets) - entropy)


@dataclass(frozen=True)
class Objective:
    """What an exit learns by, which depends on what its logits mean.

    Attributes:
        learn: logits, labels and class weights -> the loss of an exit that learns from labels.
        imitate: student's logits, teacher's logits and temperature -> the loss of an exit that learns another's answers.
    """

    learn: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    imitate: Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


CLASSES = Objective(cross_entropy, distillation_loss)
SQUARED = Objective(squared_loss, squared_imitation_loss)
LOGISTIC = Objective(logistic_loss, logistic_imitation_loss)


def objective_of(config: MultiExitBertConfig) -> Objective:
    """By what the exits of a model learn: cross entropy for classes, logistic loss for a multi-label model, else squared loss.

    transformers' own loss for the same configuration is the same.
    """
    if is_logistic(config):
        return LOGISTIC
    return SQUARED if kind_of(config) == "score" else CLASSES


def self_distillation_loss(exit_logits: Sequence[torch.Tensor], objective: Objective | None = None) -> torch.Tensor:
    """Sum over the early exits of KL(sg softmax(last exit) || softmax(exit)) (FastBERT, eq. 9).

    Args:
        exit_logits: one [B, C] per exit. The last one is the full model's.
        objective: its `imitate` is taken instead of the KL. None: classes.

    Returns:
        Scalar.
    """
    *students, full = exit_logits
    imitate = (objective or CLASSES).imitate
    return sum((imitate(logits, full, 1.0) for logits in students), start=full.new_zeros(()))


def geep_loss(
    exit_logits: Sequence[torch.Tensor],
    shared_logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    class_weights: torch.Tensor | None = None,
    objective: Objective | None = None,
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
        objective: its losses are taken instead of CE and KL. None: classes.

    Returns:
        Scalar.
    """
    learned = joint_loss([*shared_logits, exit_logits[-1]], labels, class_weights=class_weights, objective=objective)
    return learned + self_distillation_loss(exit_logits, objective)
