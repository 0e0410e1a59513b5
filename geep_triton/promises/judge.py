"""A judge of policies, which simulates them on recorded answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.policy import Policy
from geep_triton.policies.text import format_policy
from geep_triton.promises.calibration import Candidate
from geep_triton.promises.simulate import simulate
from geep_triton.promises.terms import Term


@dataclass(frozen=True, eq=False)
class Verdict:
    """How one policy answers the calibration samples, in the judge's random order.

    Attributes:
        candidate: its figures.
        disagrees: [N] bool, whether its answer is not the full model's.
        losses_of: for each promise [N]: whether it is broken; for "max_accuracy_drop" 1 where the last exit is right and this
            answer is not, -1 where it is the other way round, else 0.
        counted: for each promise [N] bool, the samples that it is about. None: all.
    """

    candidate: Candidate
    disagrees: torch.Tensor
    losses_of: tuple[torch.Tensor, ...]
    counted: tuple[torch.Tensor | None, ...]

    def losses(self, number: int, judging: slice = slice(None)) -> torch.Tensor:
        """[M], what promise `number` bounds the mean of, for those of the samples `judging` that it is about."""
        counted = self.counted[number]
        losses = self.losses_of[number][judging]
        return losses if counted is None else losses[counted[judging]]


class Judge:
    """Simulates policies on recorded answers.

    Args:
        model: whose exits were recorded.
        record: every exit's answers to N samples.
        truth: the true answers, as `geep_triton.engine.truth.true_answers` gives them; None: not known.
        order: [N] int64, the order in which verdicts give the samples.
        terms: the promises.
        full: [N, C], the last exit's answers that others are compared with. None: those of the record.
        dtype: that the layers were recorded in.
    """

    def __init__(
        self,
        model: MultiExitBert,
        record: EveryExit,
        truth: torch.Tensor | None,
        order: torch.Tensor,
        terms: Sequence[Term] = (),
        full: torch.Tensor | None = None,
        dtype: str | None = None,
    ) -> None:
        self.model, self.record = model, record
        self.order, self.terms = order, terms
        self.answers, self.truth = model.answers, truth
        self.full, self.dtype = record.logits[:, -1] if full is None else full, dtype
        self.full_is_right = None if truth is None else self.answers.right(self.full, truth)
        self.by_label = any(term.label is not None for term in terms)
        self.full_given = self.answers.given(self.full) if self.by_label else None
        counted = [None if self.full_given is None else term.counts(self.full_given) for term in terms]
        self.counted = tuple(None if rows is None else rows[order] for rows in counted)

    def __call__(self, policy: Policy, family: str, rows: slice = slice(None)) -> Verdict:
        """Judge a policy. The figures of its candidate are of the samples `rows`, in the judge's order."""
        exits = simulate(self.model, policy, self.record.tokens, self.record.logits, self.record.skipped)
        logits = self.record.logits[torch.arange(len(exits)), exits]
        disagrees, accuracy = self._disagrees(logits), None
        right = None if self.truth is None else self.answers.right(logits, self.truth)
        if right is not None:
            accuracy = float(right[self.order[rows]].double().mean())
        agreement = 1 - float(disagrees[self.order[rows]].double().mean())
        layers_run = self.record.layers_run(self.model.config.exit_layers, exits)
        mean_layers = float(layers_run[self.order[rows]].double().mean())
        candidate = Candidate(format_policy(policy), family, agreement, accuracy, mean_layers, dtype=self.dtype)
        given = self.answers.given(logits) if self.by_label else None
        losses = tuple(self._losses(term, disagrees, given, right)[self.order] for term in self.terms)
        return Verdict(candidate, disagrees[self.order], losses, self.counted)

    def _disagrees(self, logits: torch.Tensor) -> torch.Tensor:
        """[N] bool, whether answers differ from the last exit's."""
        return ~self.answers.agree(logits, self.full)

    def _losses(
        self, term: Term, disagrees: torch.Tensor, given: torch.Tensor | None, right: torch.Tensor | None
    ) -> torch.Tensor:
        """[N], what a promise bounds the mean of."""
        if term.name == "max_accuracy_drop" and right is not None and self.full_is_right is not None:
            return self.full_is_right.long() - right.long()
        if term.label is None or given is None or self.full_given is None:
            return disagrees
        # A class is lost where the last exit gives it; a label differs either way.
        return given[:, term.label] != self.full_given[:, term.label]
