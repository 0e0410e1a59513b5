"""A policy: where a sample is first looked at, who leaves there, and what it skips. One engine runs any of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, shorten
from geep_triton.modeling.model import ANSWER_HEADS, MultiExitBert
from geep_triton.policies.leave import ExitRule, Leave
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, Start
from geep_triton.tokens.ragged import Tokens


class OneExitWarning(UserWarning):
    """A policy that chooses each sample's exit answered all of them at one."""


@dataclass(frozen=True)
class Policy:
    """How deep each sample goes; `geep_triton.policies.text` has its short form, e.g. "predicted:0.05+threshold:0.3".

    Args:
        start: where a sample is first looked at, a `geep_triton.policies.start.Start`.
        leave: who leaves there and at later exits, `Sure` or `Patient` of `geep_triton.policies.leave`; None: everybody leaves
            at the start.
        skip: what samples skip on their way; None: layers by the model's gates, where it has gates.
        answer_head: which head answers those who leave early and unscored: the exit's own ("student"), or the last layer and
            its head on top of the state there ("shared"); see `MultiExitBert.forward`.

    Raises:
        ValueError: parts that make no sense together. TypeError: a part of another type.
    """

    start: Start
    leave: Leave | None = None
    skip: Skip | None = None
    answer_head: str = "student"

    def __post_init__(self) -> None:
        if isinstance(self.start, type) or not all(callable(getattr(self.start, name, None)) for name in ("check", "stops")):
            raise TypeError(f"start must be a start, with the methods check and stops, got {shorten(self.start)}")
        if not isinstance(self.leave, Leave | None):
            raise TypeError(f"leave must be Sure, Patient or None, got {shorten(self.leave)}")
        if not isinstance(self.skip, Skip | None):
            raise TypeError(f"skip must be a Skip or None, got {shorten(self.skip)}")
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)
        if isinstance(self.start, LastLayer) and self.leave is not None:
            raise ValueError("leave must be None with start LastLayer(), where everybody is answered")
        if isinstance(self.start, FirstExit) and self.leave is None:
            raise ValueError("start FirstExit() needs a leave, which says at which exits samples are scored")
        if self.answer_head == "shared" and (self.leave is not None or isinstance(self.start, LastLayer)):
            raise ValueError("answer_head 'shared' is for policies that answer early and score nobody")

    @property
    def chooses(self) -> bool:
        """Whether it may answer two samples at different exits."""
        return self.leave is not None or not isinstance(self.start, (LastLayer, AtLayer))

    @property
    def regroup(self) -> str:
        """What those do who are scored and stay: see `geep_triton.policies.leave.Sure`."""
        return "never" if self.leave is None else self.leave.regroup

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise ValueError where this policy cannot run on this model."""
        self.start.check(model, tokenizer)
        self.rule(model)
        self.skip_on(model).check(model, tokenizer)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """[N] int64 on the host, the layer at which each of N samples is first answered or scored.

        Where samples are scored, the start is moved on to the next exit at which they are.
        """
        stops, rule = self.start.stops(model, tokens), self.rule(model)
        if rule is None:
            return stops
        scored = torch.tensor([*rule.thresholds, model.config.num_hidden_layers])
        return scored[torch.searchsorted(scored, stops)]

    def rule(self, model: MultiExitBert) -> ExitRule | None:
        """Who leaves at a stop, and where the others stop next; None: everybody leaves at the first stop."""
        return None if self.leave is None else self.leave.rule(model)

    def skip_on(self, model: MultiExitBert) -> Skip:
        """What samples skip on this model: by its gates, if it has any, where the policy names nothing."""
        return self.skip or Skip("gates" if len(model.gates) else "never")
