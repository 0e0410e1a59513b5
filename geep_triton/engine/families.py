"""Families of policies that `calibrate` tries, each from cautious to bold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from geep_triton.engine.policies import Allocated, ConstantDepth, FullDepth, Patience, Policy, Predicted, Threshold, Verified
from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import score_exits

SETTINGS = 60  # of a family
CAUTIOUS_SETTINGS = 12  # of one with fitted thresholds, besides
PLANNING_PRICE = 0.05  # of a layer in agreement, where a check follows anyway
LARGEST_SHARE = 0.2  # of wrong answers among those who leave at a layer that a fitted threshold may allow


@dataclass(frozen=True, eq=False)
class FitSamples:
    """What families may be fitted to: recorded exits of samples that do not judge them.

    Attributes:
        uncertainty: [N, E - 1] normalized entropy at the early exits.
        agrees: [N, E - 1] bool, whether each gives the last exit's answer.
        layers: the E exits' layers.
        score_cost: what scoring a sample at an exit costs, in layers.
    """

    uncertainty: torch.Tensor
    agrees: torch.Tensor
    layers: tuple[int, ...]
    score_cost: float

    @classmethod
    def of(
        cls, logits: torch.Tensor, layers: Sequence[int], score_cost: float, skipped: torch.Tensor | None = None
    ) -> FitSamples:
        """From every exit's answers [N, E, C], and the layers that samples skip [N, L]: nobody leaves after such a layer."""
        early = logits[:, :-1]
        uncertainty = score_exits(early.flatten(0, 1), 1.0).uncertainty.view(early.shape[:2])
        if skipped is not None:
            uncertainty[skipped[:, [layer - 1 for layer in layers[:-1]]]] = torch.inf
        return cls(uncertainty, early.argmax(-1) == logits[:, -1:].argmax(-1), tuple(layers), score_cost)

    @cached_property
    def thresholds(self) -> list[dict[int, float]]:
        """Layer -> threshold: first parts of those under which nobody here left with a wrong answer, since on other samples
        somebody will; then for ever larger shares of wrong answers among those who leave at a layer.
        """
        shares = torch.linspace(0, LARGEST_SHARE, SETTINGS).tolist()
        found = [thresholds_at(self.uncertainty, self.agrees, share) for share in shares]
        parts = torch.logspace(-2, 0, CAUTIOUS_SETTINGS + 1).tolist()[:-1]
        cautious = [tuple(None if value is None else part * value for value in found[0]) for part in parts]
        return [worthwhile(self, thresholds) for thresholds in cautious + found]


@dataclass(frozen=True)
class Family:
    """Policies of one kind.

    Attributes:
        name: shown to the user.
        policies: from cautious to bold.
        fitted: whether the samples given to `policies` shape them, so that others must judge.
    """

    name: str
    policies: Callable[[FitSamples], list[Policy]]
    fitted: bool = False


def families_of(model: MultiExitBert) -> list[Family]:
    """What can be tried on this model: the table policies need an exit table, allocation its learned values."""
    early = model.config.exit_layers[:-1]
    if not early:
        return [Family("full", lambda fit: [FullDepth()])]
    grid = torch.logspace(-4, 0, SETTINGS).tolist()
    families = [
        Family("threshold", lambda fit: [Threshold(value) for value in grid]),
        Family("threshold per layer", partial(_per_layer, lambda values, at: Threshold(values, layers=at)), fitted=True),
        Family("constant", lambda fit: [ConstantDepth(layer) for layer in reversed(early)]),
    ]
    if len(early) > 1:  # the first has none before it to agree with
        families += [
            Family("patience", lambda fit: [Patience(patience) for patience in range(len(early) - 1, 0, -1)]),
            Family("patience of sure exits", lambda fit: [Patience(2, value) for value in grid]),
        ]
    if model.config.num_labels > 2:  # for two classes it orders samples as the entropy does
        families.append(Family("margin", lambda fit: [Threshold(value, "margin") for value in grid]))
    if model.exit_table is None:
        return families
    families += [
        Family("predicted", lambda fit: [Predicted(quantile / 20) for quantile in range(20, 0, -1)]),
        Family("verified", lambda fit: [Verified(value) for value in grid]),
        Family("verified per layer", partial(_per_layer, lambda values, at: Verified(values, layers=at)), fitted=True),
    ]
    if model.exit_table.exit_values is not None:
        quantiles = [quantile / 20 for quantile in range(20, 0, -1)]
        families += [
            Family("predicted, learned", lambda fit: [Predicted(quantile, "learned") for quantile in quantiles]),
            Family("verified, learned", lambda fit: [Verified(value, values="learned") for value in grid]),
        ]
    if model.exit_table.agreement is not None:
        prices = [0.0, *torch.logspace(-4, -0.5, SETTINGS).tolist()]
        families += [
            Family("allocated", lambda fit: [Allocated(price) for price in prices]),
            Family("allocated, verified", lambda fit: [Verified(value, price=PLANNING_PRICE) for value in grid]),
        ]
    return families


def _per_layer(make: Callable[[list[float], tuple[int, ...]], Policy], fit: FitSamples) -> list[Policy]:
    """A policy with thresholds of each layer's own for every share of wrong answers; full depth where none may leave."""
    return [make(list(found.values()), tuple(found)) if found else FullDepth() for found in fit.thresholds]


def thresholds_at(uncertainty: torch.Tensor, agrees: torch.Tensor, share: float) -> tuple[float | None, ...]:
    """Per layer the highest threshold under which at most `share` of the samples that pass it disagree; None where none is.

    Args:
        uncertainty, agrees: [N, E - 1]; an uncertainty that is infinite passes no threshold.
        share: 0..1.
    """
    values, order = uncertainty.sort(0)
    wrong = (~agrees).gather(0, order).cumsum(0)
    passing = torch.arange(1, len(values) + 1)[:, None]
    ends = torch.ones_like(agrees)
    ends[:-1] = values[1:] != values[:-1]  # equal uncertainties pass together
    holds = (wrong <= share * passing) & values.isfinite() & ends
    last = torch.where(holds, passing, 0).amax(0)
    return tuple(float(values[count - 1, layer]) if count else None for layer, count in enumerate(last.tolist()))


def worthwhile(fit: FitSamples, thresholds: Sequence[float | None]) -> dict[int, float]:
    """Layer -> threshold of the exits at which scoring saves more than it costs; at least one of those with a threshold.

    Greedy: while leaving one exit out makes the samples cheaper, the one that saves most is left out.
    """
    layers = torch.tensor(fit.layers, dtype=torch.float64)
    leaves = fit.uncertainty <= torch.tensor([-torch.inf if value is None else value for value in thresholds])
    kept = [exit_ for exit_, value in enumerate(thresholds) if value is not None]
    cost = _mean_cost(leaves, layers, kept, fit.score_cost)
    while len(kept) > 1:
        without = {exit_: _mean_cost(leaves, layers, [e for e in kept if e != exit_], fit.score_cost) for exit_ in kept}
        least = min(without, key=without.get)
        if without[least] > cost:
            break
        cost = without[least]
        kept.remove(least)
    return {fit.layers[exit_]: thresholds[exit_] for exit_ in kept}


def _mean_cost(leaves: torch.Tensor, layers: torch.Tensor, kept: list[int], score_cost: float) -> float:
    """Mean layers a sample takes that is scored at the exits `kept`, scoring included: leaves [N, E - 1] bool."""
    if not kept:
        return float(layers[-1])
    leaves = leaves[:, kept]
    left = leaves.any(1)
    first = leaves.int().argmax(1)
    depth = torch.where(left, layers[kept][first], layers[-1])
    scored = torch.where(left, first + 1, len(kept))
    return float((depth + score_cost * scored).mean())
