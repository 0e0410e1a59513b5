"""A simulation of policies: where samples would leave, from the recorded answers of every exit. No layer runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import ExitScores
from geep_triton.policies.leave import ExitRule
from geep_triton.policies.policy import Policy
from geep_triton.tokens.ragged import Tokens


def simulate(
    model: MultiExitBert, policy: Policy, tokens: Tokens, logits: torch.Tensor, skipped: torch.Tensor | None = None
) -> torch.Tensor:
    """The exit at which each sample is answered, as an index among the model's exits.

    Args:
        model: whose exits were recorded.
        policy: any policy that this model can run.
        tokens: of N samples.
        logits: [N, E, C], every exit's answers, as `Engine.every_exit` records them.
        skipped: [N, L] bool, the layers that each sample skips, as `Engine.every_exit` records them; None: none.

    Returns:
        [N] int64, indices into `model.config.exit_layers`.
    """
    exit_layers, rule = model.config.exit_layers, policy.rule(model)
    stops = first_stops(model, policy, tokens, logits, skipped)
    if rule is not None:
        for _ in follow(rule, stops, exit_layers, logits, skipped):
            pass
    return torch.searchsorted(torch.tensor(exit_layers), stops)


def first_stops(
    model: MultiExitBert, policy: Policy, tokens: Tokens, logits: torch.Tensor, skipped: torch.Tensor | None
) -> torch.Tensor:
    """The layer at which each sample is first scored, or answered unscored: [N] int64. Arguments are as for `simulate`."""
    stops, plan = policy.stops(model, tokens), policy.plan(model)
    if plan is None:
        return stops
    answers = logits[:, plan.exit_]
    if skipped is None:
        return plan.stops(answers)
    ran = ~skipped[:, plan.layer - 1]
    return plan.stops(answers.masked_fill(~ran[:, None], 0.0), ran)


def follow(
    rule: ExitRule, stops: torch.Tensor, exit_layers: Sequence[int], logits: torch.Tensor, skipped: torch.Tensor | None
) -> Iterator[tuple[int, torch.Tensor, ExitScores]]:
    """Score samples exit by exit, and move each to where it is answered.

    Args:
        rule: who leaves.
        stops: [N] int64, the layer at which each sample is first looked at. It becomes the one at which it is answered.
        exit_layers: the layers of the E exits.
        logits, skipped: as for `simulate`.

    Yields:
        The index of an exit, the samples that are scored there [K] int64, and their scores.
    """
    last = exit_layers[-1]
    previous, streak = rule.nothing_remembered(len(stops), "cpu")
    for layer in sorted(rule.thresholds):
        stopping = stops == layer
        if skipped is not None:
            # A sample that skipped the layer is neither scored nor answered after it.
            stops[stopping & skipped[:, layer - 1]] = rule.next_stop(layer, last)
            stopping &= ~skipped[:, layer - 1]
        rows = stopping.nonzero()[:, 0]
        if not rows.numel():
            continue
        unscored = not rule.remembers or layer == min(rule.thresholds)
        memory = (None, None) if unscored else (previous[rows], streak[rows])
        index = exit_layers.index(layer)
        scores = rule.score(layer, logits[rows, index], *memory)
        previous[rows], streak[rows] = scores.prediction, scores.streak
        stops[rows[~scores.leaves]] = rule.next_stop(layer, last)
        # Those who leave keep their stop, which no later layer equals.
        yield index, rows, scores
