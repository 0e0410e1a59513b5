"""Which setting of a family keeps a promise."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from geep_triton.promises.guarantees import binomial_p_value, boldest_on_average, boldest_safe
from geep_triton.promises.judge import Verdict
from geep_triton.promises.terms import Term, p_value_of_drop

BEYOND = 1.03  # times a speed-up is what is aimed at, since measurements scatter


def choose_setting(
    judged: Sequence[Verdict], terms: Sequence[Term], confidence: float | None, judging: slice, num_layers: float
) -> int | None:
    """Index of the setting to take of a family: the boldest that is safe, or the most faithful that is cheap enough.

    Several promises are kept together. Each is tested at the full confidence: a setting that breaks one of them passes all
    tests no more often than it passes that one.

    Args:
        judged: the settings of the family, from cautious to bold.
        terms: the promises.
        confidence: of this family; None: on average.
        judging: samples, in the judge's order, that had no part in making the settings.
        num_layers: for a speed-up: the mean layers of a measured policy times its speed-up.
    """
    name, value = terms[0].name, terms[0].value
    if not terms[0].on_answers:
        target = value if name == "mean_depth" else num_layers / (BEYOND * value)
        cheap = [index for index, verdict in enumerate(judged) if verdict.candidate.mean_layers <= target]
        return min(cheap, key=lambda index: float(judged[index].disagrees[judging].double().mean()), default=None)
    if confidence is None:
        found = [_on_average(judged, number, term, judging) for number, term in enumerate(terms)]
        return None if None in found else min(index for index in found if index is not None)
    p_values = []
    for verdict in judged:
        p_values.append(max(_p_value(verdict, number, term, confidence, judging) for number, term in enumerate(terms)))
        if p_values[-1] > 1 - confidence:
            break  # testing stops at the first failure
    return boldest_safe(p_values, confidence)


def _on_average(judged: Sequence[Verdict], number: int, term: Term, judging: slice) -> int | None:
    losses = torch.stack([verdict.losses(number, judging) for verdict in judged])
    return boldest_on_average(losses, term.risk) if losses.shape[1] else None


def _p_value(verdict: Verdict, number: int, term: Term, confidence: float, judging: slice) -> float:
    losses = verdict.losses(number, judging)
    if term.name == "max_accuracy_drop":
        return p_value_of_drop(losses, term.value, confidence)
    return binomial_p_value(int(losses.sum()), len(losses), term.risk)
