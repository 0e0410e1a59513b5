"""The families of policies that `calibrate` tries: a grid over where samples start and who leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from geep_triton.answers import Answers, OneClass, Score
from geep_triton.engine.predictions import EveryExit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.policies.leave import Far, Leave, Patient, Steady, Sure
from geep_triton.policies.policy import Policy
from geep_triton.policies.risk import forecasts_of, has_forecasts
from geep_triton.policies.start import AtLayer, FirstExit, LastLayer, Start, TableAgreement, TableExit
from geep_triton.promises.exits_that_pay import exits_that_pay
from geep_triton.promises.frontier import planned_policies, risk_policies
from geep_triton.table.exit_table import FORECASTS

SETTINGS = 60  # of a family
CAUTIOUS_SETTINGS = 12  # which a family with fitted thresholds has besides
QUANTILES = 20
FIRST_SCORED = 0.05  # a sample is first scored where this share of texts like it has left
PLANNING_PRICE = 0.05  # of a layer, in agreement, where samples are scored afterwards
LARGEST_SHARE = 0.2  # of wrong answers that a fitted threshold may allow among those who leave at a layer
CONSTANT = "constant"
FULL = "full"
# The cells of the grid that are tried. Each takes error from the others. The 36 calibrations of docs/results/policies.md, on
# CPUs, never chose patience, patience of sure exits and a table's counts alone. By learned values alone, a promise costs 1.2 to
# 1.8 times as much as by thresholds, whatever a score costs (docs/results/plans.md). Thresholds from where a table expects the
# first to leave are not faster than thresholds (docs/results/families.md). All these are left out. "planned", `CONSTANT` and
# "allocated+threshold" may pay where a score costs a layer or more, as on a GPU with small batches.
TRIED = (
    *("threshold", "threshold per layer", "margin", "risk", "planned", CONSTANT, "allocated+threshold"),
    # Of scores and label sets, for which starts by a table are not measured.
    *("distance", "distance per layer", "steady", "steady per layer"),
    *("predicted+distance", "predicted+distance per layer", "predicted, learned+distance", "allocated+distance"),
)
# They look at no tokens, only at answers.
PLAIN = ("threshold", "threshold per layer", "margin", "risk", "distance", "distance per layer", "steady", "steady per layer")
# Where texts change unnoticed these break about twice as many promises as thresholds do (docs/results/families.md, "Other kinds
# of text"). One of them is taken only if it is so many times as fast as the best other policy, full depth among them.
FRAGILE = ("margin", "risk", "planned", CONSTANT)
CLEARLY_FASTER = 1.1


@dataclass(frozen=True, eq=False)
class FitSamples:
    """The recorded exits of samples to which families are fitted. Other samples judge the families.

    Attributes:
        uncertainty: criterion -> [N, E - 1], its value at the early exits, infinite where the sample is not scored.
        agrees: [N, E - 1] bool, whether each early exit gives the last exit's answer.
        layers: the layers of the E exits.
        score_cost: of a sample at an exit, in layers.
    """

    uncertainty: Mapping[str, torch.Tensor]
    agrees: torch.Tensor
    layers: tuple[int, ...]
    score_cost: float

    @classmethod
    def of(
        cls,
        record: EveryExit,
        layers: Sequence[int],
        score_cost: float,
        answers: Answers,
        full: torch.Tensor | None = None,
    ) -> FitSamples:
        """Make them of every exit's answers to N samples, and the full model's [N, C] where those are of another record."""
        full = record.logits[:, -1] if full is None else full
        agrees = answers.agree(record.logits[:, :-1], full[:, None])
        criteria = ["normalized_entropy"] if isinstance(answers, OneClass) else []
        criteria += ["distance"] if answers.cuts is not None else []
        criteria += ["change"] if isinstance(answers, Score) else []
        uncertainty = {name: record.uncertainty(layers, name, answers.cuts)[:, :-1] for name in criteria}
        return cls(uncertainty, agrees, tuple(layers), score_cost)

    @cached_property
    def thresholds(self) -> dict[str, list[dict[int, float]]]:
        """Criterion -> layer -> threshold, from cautious to bold, for all families that are fitted.

        The boldest thresholds under which nobody here left with a wrong answer are made more cautious first, since on other
        samples somebody will. The later ones allow ever larger shares of wrong answers among those who leave at a layer.
        """
        return {criterion: self._thresholds(criterion, values) for criterion, values in self.uncertainty.items()}

    def _thresholds(self, criterion: str, uncertainty: torch.Tensor) -> list[dict[int, float]]:
        shares = torch.linspace(0, LARGEST_SHARE, SETTINGS).tolist()
        found = thresholds_at(uncertainty, self.agrees, shares)
        parts = torch.logspace(-2, 0, CAUTIOUS_SETTINGS + 1).tolist()[:-1]
        cautious = [tuple(None if value is None else _more_cautious(value, part) for value in found[0]) for part in parts]
        if criterion == "change":  # an exit that is left out would change what the next one is compared with
            return [self._all_exits(thresholds) for thresholds in cautious + found]
        return [drop_exits_that_do_not_pay(self, uncertainty, thresholds) for thresholds in cautious + found]

    def _all_exits(self, thresholds: Sequence[float | None]) -> dict[int, float]:
        """Layer -> threshold for every early exit; nothing where nobody leaves at any."""
        if all(value is None for value in thresholds):
            return {}
        return {layer: value or 0.0 for layer, value in zip(self.layers[:-1], thresholds, strict=True)}


def _more_cautious(threshold: float, part: float) -> float:
    """A part of a threshold from 0 up. A distance is a threshold below 0, and grows instead."""
    return part * threshold if threshold >= 0 else threshold / part


@dataclass(frozen=True)
class Family:
    """Policies of one kind, a cell of the grid.

    Attributes:
        name: shown to the user. It is the start, "+" and the leave; or the leave alone where all start at the first exit.
        policies: makes the policies, from cautious to bold.
        fitted: whether `policies` fits them to its samples, so that other samples must judge them.
    """

    name: str
    policies: Callable[[FitSamples], list[Policy]]
    fitted: bool = False


def families_of(model: MultiExitBert, every: bool = False, learned: Collection[str] | None = None) -> list[Family]:
    """The families for a model. Starts by a table need an exit table, and some of them need learned values.

    Args:
        model: its exits, classes and table decide which families there are.
        every: give all cells of the grid, not only those of `TRIED`.
        learned: names of the learned values of a table that is still to be built, "forecasts" among them. None: the model's own
            table counts.
    """
    if len(model.config.exit_layers) == 1:
        return [full_family()]
    table = model.exit_table
    if learned is None and table is not None:
        learned = [*table.learned, *([FORECASTS] if has_forecasts(model) else [])]
    families, leaves = [], _leaves(model)
    for name, (start, alone) in _starts(model.config.exit_layers[:-1], learned).items():
        if alone:
            families.append(_alone(name, alone))
        if start is not None:
            families += [_family(name, start, leave, made) for leave, made in leaves.items()]
    families += _by_forecasts(model) if FORECASTS in (learned or ()) else []
    return [family for family in families if every or family.name in TRIED]


def full_family() -> Family:
    """Full depth, as a family of one policy."""
    return Family(FULL, lambda fit: [Policy(LastLayer())])


def _by_forecasts(model: MultiExitBert) -> list[Family]:
    """Families by the forecasts of the model's exit table. Its held-out texts choose their exits."""
    return [
        Family("risk", lambda fit: risk_policies(forecasts_of(model, "risk"), fit.layers, fit.score_cost)),
        Family("planned", lambda fit: planned_policies(forecasts_of(model, "planned"), fit.layers, fit.score_cost)),
    ]


def _alone(name: str, starts: Sequence[Start]) -> Family:
    return Family(name, lambda fit: [Policy(start) for start in starts])


def error_shares(families: Sequence[Family]) -> dict[str, float]:
    """Family -> its share of the error that a promise allows. The shares sum to 1 and do not depend on any text.

    The families of `PLAIN` get at least half: they were chosen in 22 of the 36 calibrations of docs/results/policies.md. The
    others share the rest, and none of them gets more than an equal share.
    """
    plain = sum(family.name in PLAIN for family in families)
    others = len(families) - plain
    if not plain or not others:
        return {family.name: 1 / len(families) for family in families}
    of_other = min(0.5 / others, 1 / len(families))
    of_plain = (1 - others * of_other) / plain
    return {family.name: of_plain if family.name in PLAIN else of_other for family in families}


def least_gain(family: str) -> float:
    """How many times as fast as the others a family must be to be taken for a promise on answers."""
    return CLEARLY_FASTER if family in FRAGILE else 1.0


def _starts(early: Sequence[int], learned: Collection[str] | None) -> dict[str, tuple[Start | None, Sequence[Start]]]:
    """Name -> a start for samples that are scored from there on (None: none), and starts where all are answered unscored.

    Args:
        early: layers of the exits before the last.
        learned: names of the table's learned values. None: there is no table.
    """
    starts: dict[str, tuple[Start | None, Sequence[Start]]] = {
        "": (FirstExit(), []),
        CONSTANT: (None, [AtLayer(layer) for layer in reversed(early)]),
    }
    if learned is None:
        return starts
    quantiles = [quantile / QUANTILES for quantile in range(QUANTILES, 0, -1)]
    starts["predicted"] = TableExit(FIRST_SCORED), [TableExit(quantile) for quantile in quantiles]
    if "exits" in learned:
        by_learned = [TableExit(quantile, "learned") for quantile in quantiles]
        starts["predicted, learned"] = TableExit(FIRST_SCORED, "learned"), by_learned
    if "agreement" in learned:
        prices = [0.0, *torch.logspace(-4, -0.5, SETTINGS).tolist()]
        starts["allocated"] = TableAgreement(PLANNING_PRICE), [TableAgreement(price) for price in prices]
    return starts


Leaves = Callable[[FitSamples], Sequence[Leave | None]]  # makes leaves from cautious to bold; None: nobody leaves early


def _leaves(model: MultiExitBert) -> dict[str, Leaves]:
    """Name -> what makes the leaves of that name, for the kind of the model's answers."""
    answers, exits = model.answers, len(model.config.exit_layers)
    grid = torch.logspace(-4, 0, SETTINGS).tolist()
    leaves: dict[str, Leaves] = {}
    if isinstance(answers, OneClass):
        leaves = {"threshold": lambda fit: [Sure(value) for value in grid], "threshold per layer": _per_layer}
        if model.config.num_labels > 2:  # for two classes the margin orders samples as the entropy does
            leaves["margin"] = lambda fit: [Sure(value, "margin") for value in grid]
        if exits > 2:  # the first exit has no exit before it to agree with
            leaves["patience"] = lambda fit: [Patient(patience) for patience in range(exits - 2, 0, -1)]
            leaves["patience of sure exits"] = lambda fit: [Patient(2, value) for value in grid]
        return leaves
    if answers.cuts is not None:
        distances = torch.logspace(3, -3, SETTINGS).tolist()  # for scores of any unit
        leaves = {"distance": lambda fit: [Far(value) for value in distances], "distance per layer": _distance_per_layer}
    if isinstance(answers, Score) and exits > 2:
        tolerance = answers.tolerance
        if tolerance is not None:
            changes = [tolerance * part for part in torch.logspace(-2, 1, SETTINGS).tolist()]
            leaves["steady"] = lambda fit: [Steady(value) for value in changes]
        leaves["steady per layer"] = _steady_per_layer
    return leaves


def _per_layer(fit: FitSamples) -> list[Leave | None]:
    """Leaves with a threshold for each layer, one for every share of wrong answers."""
    found = fit.thresholds["normalized_entropy"]
    return [Sure(tuple(of.values()), layers=tuple(of)) if of else None for of in found]


def _distance_per_layer(fit: FitSamples) -> list[Leave | None]:
    """The same with a distance for each layer: how far from the cut a score must be there, as was learned from its errors."""
    found = fit.thresholds["distance"]
    return [Far(tuple(abs(value) for value in of.values()), layers=tuple(of)) if of else None for of in found]


def _steady_per_layer(fit: FitSamples) -> list[Leave | None]:
    """The same with a change for each layer: how little a score may change there."""
    return [Steady(tuple(of.values()), layers=tuple(of)) if of else None for of in fit.thresholds["change"]]


FITTED = (_per_layer, _distance_per_layer, _steady_per_layer)


def _family(start_name: str, start: Start, leave_name: str, leaves: Leaves) -> Family:
    def policies(fit: FitSamples) -> list[Policy]:
        return [Policy(LastLayer()) if leave is None else Policy(start, leave) for leave in leaves(fit)]

    return Family(f"{start_name}+{leave_name}".removeprefix("+"), policies, fitted=leaves in FITTED)


def thresholds_at(uncertainty: torch.Tensor, agrees: torch.Tensor, shares: Sequence[float]) -> list[tuple[float | None, ...]]:
    """For each share, per layer the highest threshold at which at most that share of those who leave disagree; None: no such.

    Args:
        uncertainty: [N, E - 1]; a sample leaves under no threshold where it is infinite.
        agrees: [N, E - 1] bool.
        shares: each 0..1.
    """
    values, order = uncertainty.sort(0)
    wrong = (~agrees).gather(0, order).cumsum(0)
    passing = torch.arange(1, len(values) + 1)[:, None]
    ends = values.isfinite()
    ends[:-1] &= values[1:] != values[:-1]  # samples of equal uncertainty leave together
    lasts = [torch.where((wrong <= share * passing) & ends, passing, 0).amax(0).tolist() for share in shares]
    return [tuple(float(values[count - 1, layer]) if count else None for layer, count in enumerate(last)) for last in lasts]


def drop_exits_that_do_not_pay(
    fit: FitSamples, uncertainty: torch.Tensor, thresholds: Sequence[float | None]
) -> dict[int, float]:
    """Layer -> threshold, for the exits at which scoring saves more than it costs, or for one exit if there is none."""
    leaves = uncertainty <= torch.tensor([-torch.inf if value is None else value for value in thresholds])
    scored = {exit_: value for exit_, value in enumerate(thresholds) if value is not None}
    kept = exits_that_pay(leaves, fit.layers, fit.score_cost, list(scored), fewest=1)
    return {fit.layers[exit_]: scored[exit_] for exit_ in kept}
