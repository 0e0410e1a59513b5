"""A simulation of policies: where samples would leave, from the recorded answers of every exit. No layer runs."""

from __future__ import annotations

import torch

from geep_triton.modeling.model import MultiExitBert
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
    exit_layers, last = model.config.exit_layers, model.config.num_hidden_layers
    stops, rule = policy.stops(model, tokens), policy.rule(model)
    if rule is None:
        return torch.searchsorted(torch.tensor(exit_layers), stops)
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
        scores = rule.score(layer, logits[rows, exit_layers.index(layer)], *memory)
        previous[rows], streak[rows] = scores.prediction, scores.streak
        stops[rows[~scores.leaves]] = rule.next_stop(layer, last)
        # Those who leave keep their stop, which no later layer equals.
    return torch.searchsorted(torch.tensor(exit_layers), stops)
