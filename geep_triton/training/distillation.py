"""Layer-wise distillation between exits: pairs of student and teacher, and the losses.

Source: Gu et al., "Curriculum learning and knowledge distillation for multi-exit BERT", IJSEKE 33(3):395-413, 2023. Only the
abstract was available to us. It says that distillation goes layer by layer from shallow to deep and replaces a single teacher.
The formulas are *our reconstruction*.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from geep_triton.checks import check_choice
from geep_triton.training.losses import CLASSES, Objective

PAIRINGS = ("next", "last", "deeper", "teacher")
ORDERS = ("together", "shallow_to_deep")


def exit_pairs(num_exits: int, pairing: str) -> list[tuple[int, tuple[int, ...]]]:
    """Each early exit with its teachers, shallow to deep, as indices of exits.

    Args:
        num_exits: number of exits. The last exit is only a teacher.
        pairing: "next" (the next deeper exit), "last" (the last exit) or "deeper" (all deeper exits).

    Returns:
        One (student, teachers) per early exit.

    Raises:
        ValueError: the pairing is unknown.
    """
    check_choice("pairing", pairing, PAIRINGS[:3])
    last = num_exits - 1
    teachers = {"next": lambda i: (i + 1,), "last": lambda i: (last,), "deeper": lambda i: tuple(range(i + 1, num_exits))}
    return [(i, teachers[pairing](i)) for i in range(last)]


def active_layers(num_layers: int, progress: float, order: str) -> int:
    """Number of layers that learn, counted from the shallowest.

    Args:
        num_layers: number of layers.
        progress: share of the training that is over, 0..1.
        order: "together" (all layers learn) or "shallow_to_deep" (one more layer learns in each equal part of the training).

    Raises:
        ValueError: the order is unknown.
    """
    check_choice("order", order, ORDERS)
    return num_layers if order == "together" else min(num_layers, int(progress * num_layers) + 1)


def layerwise_distillation_loss(
    exit_logits: Sequence[torch.Tensor],
    pairing: str = "next",
    temperature: float = 1.0,
    teacher_logits: torch.Tensor | None = None,
    progress: float = 0.0,
    order: str = "together",
    objective: Objective | None = None,
) -> torch.Tensor:
    """Sum over the students of T^2 KL(sg teacher || student), averaged over the teachers of each student (*our
    reconstruction*).

    Args:
        exit_logits: one [B, C] per exit.
        pairing: as in `exit_pairs`, or "teacher" if every exit learns from `teacher_logits`.
        temperature: T.
        teacher_logits: [B, C] of an external model, only for pairing "teacher".
        progress: share of the training that is over, 0..1.
        order: as in `active_layers`.
        objective: its `imitate` is taken instead of the KL. None: classes.

    Returns:
        Scalar.

    Raises:
        ValueError: the pairing or the order is unknown.
    """
    imitate = (objective or CLASSES).imitate
    if pairing == "teacher":
        if teacher_logits is None:
            raise ValueError("pairing 'teacher' needs teacher_logits")
        pairs = [(logits, [teacher_logits]) for logits in exit_logits]
    else:
        pairs = [(exit_logits[i], [exit_logits[j] for j in js]) for i, js in exit_pairs(len(exit_logits), pairing)]
    active = pairs[: active_layers(len(pairs), progress, order)]
    return sum(
        (torch.stack([imitate(student, teacher, temperature) for teacher in teachers]).mean() for student, teachers in active),
        start=exit_logits[0].new_zeros(()),
    )


def feature_loss(
    hidden_states: Sequence[torch.Tensor],
    attention_mask: torch.Tensor,
    pairing: str = "next",
    progress: float = 0.0,
    order: str = "together",
) -> torch.Tensor:
    """Sum over the students of ||norm(h_i) - sg norm(h_j)||^2 (*our reconstruction*).

    Each term is a mean over the real tokens of a sample, over samples and over the teachers j.

    Args:
        hidden_states: one [B, S, H] per exit.
        attention_mask: [B, S], 1 for real tokens.
        pairing: as in `exit_pairs`.
        progress: share of the training that is over, 0..1.
        order: as in `active_layers`.

    Returns:
        Scalar.

    Raises:
        ValueError: the pairing or the order is unknown.
    """
    unit = [F.normalize(states, dim=-1) for states in hidden_states]
    weights = attention_mask.to(unit[0].dtype)
    weights = weights / weights.sum(1, keepdim=True) / len(weights)
    total = hidden_states[0].new_zeros(())
    pairs = exit_pairs(len(unit), pairing)
    for student, teachers in pairs[: active_layers(len(pairs), progress, order)]:
        distances = [(unit[student] - unit[teacher].detach()).square().sum(-1) for teacher in teachers]
        total = total + (torch.stack(distances).mean(0) * weights).sum()
    return total
