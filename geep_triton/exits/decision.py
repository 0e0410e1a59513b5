"""From a distribution over exits to one exit."""

from __future__ import annotations

import torch

from geep_triton.checks import check_number, shorten

DECISIONS = ("argmax", "mean")


def check_decision(decision: str | float) -> None:
    """Raise unless `decision` is "argmax", "mean" or a quantile in (0, 1]."""
    if isinstance(decision, str):
        if decision not in DECISIONS:
            raise ValueError(f"unknown decision {shorten(decision)}; known: argmax, mean, or a quantile such as 0.9")
        return
    check_number("decision (a quantile)", decision, 0.0, 1.0)
    if decision == 0:
        raise ValueError("decision (a quantile) must be above 0")


def decide(probabilities: torch.Tensor, exit_layers: tuple[int, ...], decision: str | float) -> torch.Tensor:
    """The exit layer of each sample.

    Args:
        probabilities: [N, E], P(e|x) over the exits, shallow to deep.
        exit_layers: E layer numbers, ascending.
        decision: "argmax" (the shallowest of the most probable), "mean" (the first exit at or beyond the expected layer), or
            a quantile q (the first exit by which a share q of the probability has left).

    Returns:
        [N] int64 layer numbers.
    """
    check_decision(decision)
    layers = torch.tensor(exit_layers)
    # Sums of float32 shares miss the exact bound by rounding; half a millionth of a layer is no reason to go one deeper.
    slack = 5e-7 * len(exit_layers)
    if decision == "argmax":
        index = probabilities.argmax(-1)
    elif decision == "mean":
        expected = probabilities @ layers.to(probabilities.dtype)
        index = (layers < expected[:, None] - slack).sum(-1)
    else:
        index = (probabilities.cumsum(-1) < decision - slack).sum(-1)
    return layers[index.clamp(max=len(exit_layers) - 1)]
