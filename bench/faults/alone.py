"""Answers one sample alone in float32, layer by layer. The engine must give this answer in every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.leave import ExitRule
from geep_triton.policies.policy import Policy
from geep_triton.table.paths import choose_paths
from geep_triton.tokens.ragged import Tokens


@dataclass
class Alone:
    """An answer of one sample.

    Attributes:
        logits: [C].
        layer: the layer after which it was answered.
        skipped: the layers that it skipped.
        margin: how far the closest decision on its way was from the opposite decision.
    """

    logits: torch.Tensor
    layer: int
    skipped: frozenset[int]
    margin: float


@torch.inference_mode()
def answer_alone(model: MultiExitBert, ids: list[int], types: list[int], policy: Policy) -> Alone:
    """The answer that follows from the policy's definition."""
    tokens = Tokens.from_lists([ids], [types] if any(types) else None)
    first, rule, skip, path = int(policy.stops(model, tokens)), policy.rule(model), policy.skip_on(model), None
    if skip.mode == "never":
        path = frozenset()
    elif skip.mode == "planned":
        table = model.exit_table
        paths = table.learned["skips"].paths
        chosen = choose_paths(table.predict_skips(tokens), paths, skip.price)
        path = frozenset((paths[int(chosen)].nonzero()[:, 0] + 1).tolist())
    return _walk(model, ids, types, first, rule, path, policy.answer_head)


def _walk(
    model: MultiExitBert,
    ids: list[int],
    types: list[int],
    first: int,
    rule: ExitRule | None,
    path: frozenset[int] | None,
    answer_head: str,
) -> Alone:
    mask, last = torch.ones(1, len(ids), dtype=torch.int64), model.config.num_hidden_layers
    hidden, skipped, margin = model.embed(torch.tensor([ids]), torch.tensor([types])), set(), torch.inf
    previous, streak = torch.tensor([-1]), torch.tensor([0], dtype=torch.int32)
    for layer in range(1, last + 1):
        answers = rule is None and layer == first < last  # an early head reads what its layer gives
        skips = False
        if path is not None:
            skips = layer in path
        elif (gate := model.skip_gate(layer, hidden, mask)) is not None and not answers:
            margin = min(margin, abs(float(gate.soft) - model.config.skip_threshold))
            skips = bool(gate.hard)
        skips = skips and not answers
        if skips:
            skipped.add(layer)
        else:
            hidden = model.run_layer(layer, hidden, None)
        if layer == last or (rule is None and layer == first):
            logits = model.exit_logits(layer, hidden, mask)
            if answer_head == "shared" and layer < last:
                logits = model.shared_logits(hidden, mask, None)
            return Alone(logits[0], layer, frozenset(skipped), margin)
        if rule is None or layer not in rule.thresholds or layer < first or skips:
            continue
        logits = model.exit_logits(layer, hidden, mask)
        scores = rule.score(layer, logits, previous, streak)
        margin = min(margin, _margin(rule, layer, logits, float(scores.uncertainty)))
        previous, streak = scores.prediction, scores.streak
        if bool(scores.leaves):
            return Alone(logits[0], layer, frozenset(skipped), margin)
    raise AssertionError("a sample left nowhere")


def _margin(rule: ExitRule, layer: int, logits: torch.Tensor, uncertainty: float) -> float:
    if rule.rule == "agreement":
        best = logits[0].topk(2).values
        return float(best[0] - best[1])
    return abs(uncertainty - rule.thresholds[layer])


@torch.inference_mode()
def logits_along(
    model: MultiExitBert, ids: list[int], types: list[int], layer: int, skipped: frozenset[int], answer_head: str
) -> torch.Tensor:
    """The logits [C] of the exit at `layer`, after all layers up to it that are not skipped."""
    mask = torch.ones(1, len(ids), dtype=torch.int64)
    hidden = model.embed(torch.tensor([ids]), torch.tensor([types]))
    for number in range(1, layer + 1):
        if number not in skipped:
            hidden = model.run_layer(number, hidden, None)
    if answer_head == "shared" and layer < model.config.num_hidden_layers:
        return model.shared_logits(hidden, mask, None)[0]
    return model.exit_logits(layer, hidden, mask)[0]
