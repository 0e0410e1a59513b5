"""How texts go through a model under a policy: exits, lengths and answers, in counts."""

from __future__ import annotations

from itertools import pairwise

import torch

from geep_triton.answers import Answers, LabelSet, Score
from geep_triton.calibrated import AtExit, Breakdown, Group
from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.policy import Policy
from geep_triton.promises.simulate import simulate

MOST_LENGTHS = 8  # bins
MOST_ANSWERS = 20  # classes or labels with a group of their own; exit_config.json stays small
SCORE_BINS = 5


def breakdown(model: MultiExitBert, policy: Policy, record: EveryExit, full: torch.Tensor | None = None) -> Breakdown:
    """Count where texts leave under a policy, and with which answers.

    Args:
        model: whose exits were recorded.
        policy: any policy that this model can run.
        record: every exit's answers to N texts, as `Engine.every_exit` gives them.
        full: [N, C], the last exit's answers that others are compared with. None: those of the record.

    Raises:
        ValueError: answers cannot be compared, because the model's score has neither a decision nor a tolerance.
    """
    answers, exit_layers, rows = model.answers, model.config.exit_layers, torch.arange(len(record.tokens))
    exits = simulate(model, policy, record.tokens, record.logits, record.skipped)
    full = record.logits[:, -1] if full is None else full
    same = answers.agree(record.logits, full[:, None])
    same_at_exit = same[rows, exits]
    layers = record.layers_run(exit_layers, exits)

    def group(name: str, members: torch.Tensor) -> Group:
        return Group(name, int(members.sum()), int(layers[members].sum()), int(same_at_exit[members].sum()))

    of_answer = [(name, members) for name, members in _answers(answers, full) if members.any()]
    of_length = [(name, members) for name, members in _lengths(record.tokens.lengths) if members.any()]
    return Breakdown(
        texts=len(rows),
        by="scores" if isinstance(answers, Score) else "labels" if isinstance(answers, LabelSet) else "classes",
        exits=tuple(
            AtExit(layer, int((exits == e).sum()), int((same_at_exit & (exits == e)).sum()), int(same[:, e].sum()))
            for e, layer in enumerate(exit_layers)
        ),
        by_length=tuple(group(name, members) for name, members in of_length),
        by_answer=tuple(group(name, members) for name, members in of_answer),
    )


def _lengths(lengths: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Name and members [N] bool of bins of token counts: half octaves (9-12, 13-16, 17-24), or octaves where these are many."""
    longest = int(lengths.max())
    octaves = [8 << step for step in range(max(1, longest.bit_length()))]
    halves = sorted([*octaves, *(edge + edge // 2 for edge in octaves)])
    bins = _between(lengths, halves)
    return bins if sum(bool(members.any()) for _, members in bins) <= MOST_LENGTHS else _between(lengths, octaves)


def _between(lengths: torch.Tensor, edges: list[int]) -> list[tuple[str, torch.Tensor]]:
    lows = [0, *edges[:-1]]
    return [(f"{low + 1}-{high}", (lengths > low) & (lengths <= high)) for low, high in zip(lows, edges, strict=True)]


def _answers(answers: Answers, full: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Name and members [N] bool of groups by the full model's answer, given its logits [N, C]."""
    if isinstance(answers, Score):
        return _scores(answers, full)
    given = answers.given(full)
    counts = given.sum(0)
    most = counts.argsort(descending=True, stable=True)[:MOST_ANSWERS].tolist()
    groups = [(answers.id2label[index], given[:, index]) for index in most]
    others = [index for index in range(given.shape[1]) if index not in most and counts[index]]
    if others:
        groups.append((f"{len(others)} others", given[:, others].any(1)))
    if isinstance(answers, LabelSet):
        groups.append(("no label", ~given.any(1)))
    return groups


def _scores(answers: Score, full: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Bins of about as many texts each, with the decision as a bound. The outermost have no end, which would be one text's."""
    scores = answers.scores(full)
    inner = torch.linspace(0, 1, SCORE_BINS + 1)[1:-1]
    bounds = {float(f"{float(value):.3g}") for value in scores.quantile(inner)}
    bounds |= set() if answers.decision is None else {answers.decision}
    edges = sorted(bounds)
    groups = [(f"below {edges[0]:g}", scores < edges[0])]
    groups += [(f"{low:g} to {high:g}", (scores >= low) & (scores < high)) for low, high in pairwise(edges)]
    return [*groups, (f"from {edges[-1]:g}", scores >= edges[-1])]
