"""A judge of policies, which simulates them on recorded answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.policy import Policy
from geep_triton.policies.text import format_policy
from geep_triton.promises.calibration import Candidate
from geep_triton.promises.simulate import simulate


@dataclass(frozen=True, eq=False)
class Verdict:
    """How one policy answers the calibration samples, in the judge's random order.

    Attributes:
        candidate: its figures.
        disagrees: [N] bool, whether its answer is not the last exit's.
        drop: [N] int64: 1 where the last exit is right and this answer is not, -1 where it is the other way round, else 0. None
            without labels.
    """

    candidate: Candidate
    disagrees: torch.Tensor
    drop: torch.Tensor | None

    def losses(self, promise: str) -> torch.Tensor:
        """[N], what "agreement" or "max_accuracy_drop" bounds the mean of. ValueError for a drop without labels."""
        if promise == "agreement":
            return self.disagrees
        if self.drop is None:
            raise ValueError(f"{promise} needs labels")
        return self.drop


class Judge:
    """Simulates policies on recorded answers.

    Args:
        model: whose exits were recorded.
        record: every exit's answers to N samples.
        truth: [N] int64, their labels; None: not known.
        order: [N] int64, the order in which verdicts give the samples.
    """

    def __init__(self, model: MultiExitBert, record: EveryExit, truth: torch.Tensor | None, order: torch.Tensor) -> None:
        self.model, self.record = model, record
        self.truth, self.order = truth, order
        self.answers = record.logits.argmax(-1)

    def __call__(self, policy: Policy, family: str, rows: slice = slice(None)) -> Verdict:
        """Judge a policy. The figures of its candidate are of the samples `rows`, in the judge's order."""
        exits = simulate(self.model, policy, self.record.tokens, self.record.logits, self.record.skipped)
        given = self.answers.gather(1, exits[:, None])[:, 0]
        disagrees, drop, accuracy = given != self.answers[:, -1], None, None
        if self.truth is not None:
            right = given == self.truth
            drop = ((self.answers[:, -1] == self.truth).long() - right.long())[self.order]
            accuracy = float(right[self.order[rows]].double().mean())
        agreement = 1 - float(disagrees[self.order[rows]].double().mean())
        layers_run = self.record.layers_run(self.model.config.exit_layers, exits)
        mean_layers = float(layers_run[self.order[rows]].double().mean())
        candidate = Candidate(format_policy(policy), family, agreement, accuracy, mean_layers)
        return Verdict(candidate, disagrees[self.order], drop)
