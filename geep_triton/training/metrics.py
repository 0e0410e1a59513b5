"""How good every exit is, in the unit of the model's answers."""

from __future__ import annotations

import torch

from geep_triton.answers import Answers, OneClass, Score

METRICS = {"classes": "accuracy", "score": "mse", "label sets": "f1"}  # by the kind of the model's answers


def exit_metric(answers: Answers, exit_logits: torch.Tensor, labels: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A metric and its value at each exit.

    Args:
        answers: what logits mean.
        exit_logits: [N, E, C].
        labels: [N] int64 classes, [N] scores, or [N, C] 0 or 1 for each label.

    Returns:
        "accuracy", "mse" (of the scores) or "f1" (micro average over the labels; 1 where nothing is to be found and nothing
        is), and [E] float64.
    """
    if isinstance(answers, OneClass):
        return "accuracy", (exit_logits.argmax(-1) == labels[:, None]).double().mean(0)
    if isinstance(answers, Score):
        return "mse", (answers.scores(exit_logits).double() - labels.double().view(-1, 1)).square().mean(0)
    given, right = answers.given(exit_logits), labels[:, None].bool()
    hits = (given & right).sum((0, 2)).double()
    all_of_both = given.sum((0, 2)) + right.sum((0, 2))
    return "f1", torch.where(all_of_both > 0, 2 * hits / all_of_both.clamp(min=1), 1.0)


def exit_agreement(answers: Answers, exit_logits: torch.Tensor) -> torch.Tensor:
    """How often each exit gives the last exit's answer, for data without labels.

    Args:
        answers: what logits mean.
        exit_logits: [N, E, C].

    Returns:
        [E] float64, shares.

    Raises:
        ValueError: the answers are scores without a decision or a tolerance to compare them by.
    """
    return answers.agree(exit_logits, exit_logits[:, -1:]).double().mean(0)
