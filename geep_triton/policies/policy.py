"""A policy: where a sample is first looked at, who leaves there, and what it skips. One engine runs all policies."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_choice, check_kind, shorten
from geep_triton.modeling.model import ANSWER_HEADS, MultiExitBert
from geep_triton.policies.leave import REGROUPS, ExitRule, Leave, scored_layers
from geep_triton.policies.plan import Plan, PlannedAfter
from geep_triton.policies.skip import Skip
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, Start
from geep_triton.tokens.ragged import Tokens


class OneExitWarning(UserWarning):
    """A policy that chooses each sample's exit gave all of them the same exit."""


@dataclass(frozen=True)
class Policy:
    """How deep each sample goes. `geep_triton.policies.text` has the short form, e.g. "predicted:0.05+threshold:0.3".

    Args:
        start: where a sample is first looked at, a `geep_triton.policies.start.Start`.
        leave: who leaves there and at later exits: `Sure`, `Patient` or another `Leave` of `geep_triton.policies.leave`. None:
            everybody leaves at the start.
        skip: which layers samples skip. None: the model's gates decide, if it has any.
        answer_head: the head that answers early without a score: the exit's own ("student"), or the last layer and its head on
            top of the state there ("shared"). See `MultiExitBert.forward`.

    Raises:
        ValueError: the parts do not fit together.
        TypeError: a part has another type.
    """

    start: Start
    leave: Leave | None = None
    skip: Skip | None = None
    answer_head: str = "student"

    def __post_init__(self) -> None:
        if isinstance(self.start, type) or not all(callable(getattr(self.start, name, None)) for name in ("check", "stops")):
            raise TypeError(f"start must be a start, with the methods check and stops, got {shorten(self.start)}")
        if isinstance(self.leave, type) or not (self.leave is None or callable(getattr(self.leave, "rule", None))):
            raise TypeError(f"leave must be a leave, with the method rule, or None, got {shorten(self.leave)}")
        check_choice("regroup", self.regroup, REGROUPS)
        if not isinstance(self.skip, Skip | None):
            raise TypeError(f"skip must be a Skip or None, got {shorten(self.skip)}")
        check_choice("answer_head", self.answer_head, ANSWER_HEADS)
        if isinstance(self.start, LastLayer) and self.leave is not None:
            raise ValueError("leave must be None with start LastLayer(), where everybody is answered")
        if isinstance(self.start, FirstExit) and self.leave is None:
            raise ValueError("start FirstExit() needs a leave, which says at which exits samples are scored")
        if self.answer_head == "shared" and (self.leave is not None or isinstance(self.start, LastLayer)):
            raise ValueError("answer_head 'shared' is for policies that answer early and score nobody")
        if self.answer_head == "shared" and isinstance(self.start, PlannedAfter):
            raise ValueError("answer_head 'shared': plans are learned from the exits' own heads")

    @property
    def chooses(self) -> bool:
        """Whether the policy may answer two samples at different exits."""
        return self.leave is not None or not isinstance(self.start, (LastLayer, AtLayer))

    @property
    def looks(self) -> bool:
        """Whether samples are looked at on their way, scored or planned, so that the engine asks what a stop costs."""
        return self.leave is not None or isinstance(self.start, PlannedAfter)

    @property
    def regroup(self) -> str:
        """How samples continue that were scored, or planned, and stay. See `geep_triton.policies.leave.Sure`."""
        if self.leave is not None:
            return getattr(self.leave, "regroup", "auto")
        return self.start.regroup if isinstance(self.start, PlannedAfter) else "never"

    def check(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Raise ValueError if this policy cannot run on this model. A tokenizer of None is not checked."""
        model.table_fits()  # notices weights that were written since the table was set
        self.start.check(model, tokenizer)
        self.rule(model)
        self.skip_on(model).check(model, tokenizer)

    def stops(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """The layer at which each sample is first answered, scored or planned: [N] int64 on the host.

        If samples are scored, each start moves on to the next exit with a score. A plan is made where it says.
        """
        stops = self.start.stops(model, tokens)
        rule = None if isinstance(self.start, PlannedAfter) else self.rule(model)
        if rule is None:
            return stops
        scored = torch.tensor([*rule.thresholds, model.config.num_hidden_layers])
        return scored[torch.searchsorted(scored, stops)]

    def expected_layers(self, model: MultiExitBert, tokens: Tokens) -> torch.Tensor:
        """How many layers samples are expected to run, before any has run: [N] int64 on the host. Skipped layers count, too.

        Where nobody is scored or planned, this is exact. Else it is the mean exit that the model's exit
        table predicts, which tells shallow texts from deep ones, not how deep they go; without a table the last layer.
        """
        stops = self.stops(model, tokens)
        if not self.looks:
            return stops
        if model.exit_table is None:
            return torch.full_like(stops, model.config.num_hidden_layers)
        return model.exit_table.predict(tokens, "mean", model.device).exits.cpu().maximum(stops)

    def rule(self, model: MultiExitBert) -> ExitRule | None:
        """Who leaves at a stop, and where the others stop next. None: everybody leaves at the first stop.

        Where exits are planned, samples are scored only after that, and a leave that names earlier layers is refused.
        """
        if self.leave is None:
            return None
        rule = self.leave.rule(model)
        check_kind("leave.rule(model)", rule, ExitRule)
        scored_layers(model, list(rule.thresholds))
        if not isinstance(self.start, PlannedAfter):
            return rule
        later = {layer: value for layer, value in rule.thresholds.items() if layer > self.start.layer}
        names: list[str] = [field.name for field in fields(self.leave)] if is_dataclass(self.leave) else []
        explicit = any(isinstance(getattr(self.leave, name), tuple) for name in names)
        if explicit and len(later) < len(rule.thresholds):
            given = list(rule.thresholds)
            raise ValueError(
                f"leave must score only after layer {self.start.layer}, where exits are planned, got layers {given}"
            )
        if not later:
            raise ValueError(f"leave scores nobody after the plan, which is made after layer {self.start.layer}")
        return replace(rule, thresholds=later)

    def plan(self, model: MultiExitBert) -> Plan | None:
        """How exits are planned after an early one. None: the policy plans none.

        If samples are scored, a planned exit moves on to the next one with a score.
        """
        if not isinstance(self.start, PlannedAfter):
            return None
        plan, rule = self.start.plan(model), self.rule(model)
        return plan if rule is None else replace(plan, scored=(*rule.thresholds, model.config.num_hidden_layers))

    def skip_on(self, model: MultiExitBert) -> Skip:
        """How samples skip on this model. If the policy does not say, the model's gates decide, if it has any."""
        return self.skip or Skip("gates" if len(model.gates) else "never")
