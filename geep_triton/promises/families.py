"""Families of policies that `calibrate` tries, each from cautious to bold: a grid over where samples start and who leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.leave import Leave, Patient, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, Start, TableAgreement, TableExit

SETTINGS = 60  # of a family
CAUTIOUS_SETTINGS = 12  # of one with fitted thresholds, besides
QUANTILES = 20
FIRST_SCORED = 0.05  # share of texts like it that have left where a sample is first scored
PLANNING_PRICE = 0.05  # of a layer in agreement, where a check follows anyway
LARGEST_SHARE = 0.2  # of wrong answers among those who leave at a layer that a fitted threshold may allow
CONSTANT = "constant"
# The cells of the grid that are tried. Patience, patience of sure exits and a table's counts alone were chosen in none of the
# 36 calibrations of bench/POLICIES.md, and only took error from the others.
TRIED = (
    *("threshold", "threshold per layer", "margin", CONSTANT),
    *("predicted+threshold", "predicted+threshold per layer", "predicted, learned", "predicted, learned+threshold"),
    *("allocated", "allocated+threshold"),
)
PLAIN = ("threshold", "threshold per layer", "margin")  # scored from the first exit on, whatever the tokens are


@dataclass(frozen=True, eq=False)
class FitSamples:
    """What families may be fitted to: recorded exits of samples that do not judge them.

    Attributes:
        uncertainty: [N, E - 1] normalized entropy at the early exits, infinite where the sample is not scored.
        agrees: [N, E - 1] bool, whether each gives the last exit's answer.
        layers: the E exits' layers.
        score_cost: what scoring a sample at an exit costs, in layers.
    """

    uncertainty: torch.Tensor
    agrees: torch.Tensor
    layers: tuple[int, ...]
    score_cost: float

    @classmethod
    def of(cls, record: EveryExit, layers: Sequence[int], score_cost: float) -> FitSamples:
        """From every exit's answers to N samples."""
        answers = record.logits.argmax(-1)
        agrees = answers[:, :-1] == answers[:, -1:]
        return cls(record.uncertainty(layers)[:, :-1], agrees, tuple(layers), score_cost)

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
    """Policies of one kind: a cell of the grid.

    Attributes:
        name: shown to the user: its start, "+" and its leave; a leave alone where samples are scored from the first exit on.
        policies: from cautious to bold.
        fitted: whether the samples given to `policies` shape them, so that others must judge.
    """

    name: str
    policies: Callable[[FitSamples], list[Policy]]
    fitted: bool = False


def families_of(model: MultiExitBert, every: bool = False) -> list[Family]:
    """What `calibrate` tries on this model; starts by a table need an exit table, and some of them its learned values.

    Args:
        model: whose exits, classes and table they are for.
        every: all cells of the grid, not only those of `TRIED`.
    """
    if len(model.config.exit_layers) == 1:
        return [Family("full", lambda fit: [Policy(LastLayer())])]
    families, leaves = [], _leaves(model)
    for name, (start, alone) in _starts(model).items():
        if alone:
            families.append(Family(name, lambda fit, alone=alone: [Policy(at) for at in alone]))
        if start is not None:
            families += [_family(name, start, leave, made) for leave, made in leaves.items()]
    return [family for family in families if every or family.name in TRIED]


def error_shares(families: Sequence[Family]) -> dict[str, float]:
    """Family -> its share of the error that a promise allows. They sum to 1, and the calibration's texts have no part in them.

    Half is for the families of `PLAIN`, which were chosen most often and kept their promises under shifted texts. The others
    share the rest, and none of them gets more than a plain one.
    """
    plain = sum(family.name in PLAIN for family in families)
    others = len(families) - plain
    if not plain or not others:
        return {family.name: 1 / len(families) for family in families}
    of_other = min(0.5 / others, 1 / len(families))
    of_plain = (1 - others * of_other) / plain
    return {family.name: of_plain if family.name in PLAIN else of_other for family in families}


def _starts(model: MultiExitBert) -> dict[str, tuple[Start | None, list[Start]]]:
    """Name -> where samples start that a leave scores from there on (None: none does), and where all are answered unscored."""
    early, table = model.config.exit_layers[:-1], model.exit_table
    starts: dict[str, tuple[Start | None, list[Start]]] = {
        "": (FirstExit(), []),
        CONSTANT: (None, [AtLayer(layer) for layer in reversed(early)]),
    }
    if table is None:
        return starts
    quantiles = [quantile / QUANTILES for quantile in range(QUANTILES, 0, -1)]
    starts["predicted"] = TableExit(FIRST_SCORED), [TableExit(quantile) for quantile in quantiles]
    if "exits" in table.learned:
        learned = [TableExit(quantile, "learned") for quantile in quantiles]
        starts["predicted, learned"] = TableExit(FIRST_SCORED, "learned"), learned
    if "agreement" in table.learned:
        prices = [0.0, *torch.logspace(-4, -0.5, SETTINGS).tolist()]
        starts["allocated"] = TableAgreement(PLANNING_PRICE), [TableAgreement(price) for price in prices]
    return starts


Leaves = Callable[[FitSamples], Sequence[Leave | None]]  # from cautious to bold; None: nobody may leave early


def _leaves(model: MultiExitBert) -> dict[str, Leaves]:
    """Name -> who leaves."""
    grid, exits = torch.logspace(-4, 0, SETTINGS).tolist(), len(model.config.exit_layers)
    leaves: dict[str, Leaves] = {"threshold": lambda fit: [Sure(value) for value in grid], "threshold per layer": _per_layer}
    if model.config.num_labels > 2:  # for two classes it orders samples as the entropy does
        leaves["margin"] = lambda fit: [Sure(value, "margin") for value in grid]
    if exits > 2:  # the first has none before it to agree with
        leaves["patience"] = lambda fit: [Patient(patience) for patience in range(exits - 2, 0, -1)]
        leaves["patience of sure exits"] = lambda fit: [Patient(2, value) for value in grid]
    return leaves


def _per_layer(fit: FitSamples) -> list[Leave | None]:
    """Thresholds of each layer's own for every share of wrong answers."""
    return [Sure(tuple(found.values()), layers=tuple(found)) if found else None for found in fit.thresholds]


def _family(start_name: str, start: Start, leave_name: str, leaves: Leaves) -> Family:
    def policies(fit: FitSamples) -> list[Policy]:
        return [Policy(LastLayer()) if leave is None else Policy(start, leave) for leave in leaves(fit)]

    return Family(f"{start_name}+{leave_name}".removeprefix("+"), policies, fitted=leaves is _per_layer)


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
