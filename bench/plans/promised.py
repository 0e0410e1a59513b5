"""What each family of `bench.plans` costs where it promises agreement, by 200 calibrations at random on recorded exits.

    python -m bench.plans.promised --work WORK --e5 E5

Reads the records that `bench.plans.record` left in WORK. No layer runs, and nothing is timed: a text costs the layers that it
runs, so much for each look at it, and a tenth of a layer for an answer without one (less where a look costs less).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import binom

from bench.answers.tasks import Trained
from bench.answers.training import folder_of
from bench.cells import Cell, run_missing
from bench.environment import RESULTS
from bench.plans.command import parser_of
from bench.plans.families import LEARNED_SHARE, ORACLE, PER_LAYER, SETTINGS, families, per_layer, readings
from bench.plans.outcomes import HEAD_COST, Means, Outcome
from bench.plans.record import FILE, JUDGE, TABLE, Part, load_parts, recorded_cells
from bench.plans.signals import Texts
from bench.rows import Found, found
from bench.training import declared

OUTPUT = RESULTS / "plans" / "promised"
STOP_COSTS = (0.1, 0.5, 1.0, 2.0)  # of a look, in layers
PROMISES = (0.99, 0.98, 0.95)
CONFIDENCE = 0.95  # of each family alone
SPLITS = 200
FITTED_SPLITS = 40  # of a family that every calibration fits anew, which takes long
DIGITS = 5


class Draws(NamedTuple):
    """How often each text is drawn in D calibrations, for those that calibrate and those that judge: [N, D] each."""

    calibrating: torch.Tensor
    judging: torch.Tensor


def halves(samples: int, count: int) -> Draws:
    """Random halves to calibrate on, each judged by the other half."""
    drawn = torch.zeros(samples, count)
    for seed in range(count):
        drawn[half_of(samples, seed)[0], seed] = 1
    return Draws(drawn, 1 - drawn)


def half_of(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random half of the texts, and the others."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return order[: samples // 2], order[samples // 2 :]


def from_population(samples: int, count: int) -> Draws:
    """Half as many texts as there are, drawn with replacement, each time judged by all texts, which are the truth here."""
    drawn = torch.zeros(samples, count)
    for seed in range(count):
        rows = torch.randint(samples, (samples // 2,), generator=torch.Generator().manual_seed(seed))
        drawn[:, seed] = torch.bincount(rows, minlength=samples)
    return Draws(drawn, torch.ones(samples, count))


def most_failures(samples: int, risk: float, confidence: float) -> int:
    """With how many failures of `samples` a risk is still shown to be kept by the binomial test; -1 where with none."""
    shown = binom.cdf(np.arange(samples + 1), samples, risk) <= 1 - confidence
    return int(shown.sum()) - 1  # the p-value rises with the failures


def boldest(failures: torch.Tensor, samples: int, risk: float, confidence: float) -> torch.Tensor:
    """[D] int64, index of the setting before the first one that is not shown to be safe; -1 where already the first is not.

    This is `geep_triton.promises.guarantees.boldest_safe` of D calibrations at once.

    Args:
        failures: [S, D], of the settings from cautious to bold.
        samples: of a calibration.
        risk: that is allowed.
        confidence: of the test.
    """
    safe = failures <= most_failures(samples, risk, confidence)
    return safe.int().cumprod(0).sum(0) - 1


@dataclass(frozen=True)
class Judged:
    """What D calibrations of a family reach.

    Attributes:
        means: [D] each, over the texts that judge.
        none_safe: [D] bool, whether no setting was shown to be safe, so that all texts run all layers.
    """

    means: Means
    none_safe: torch.Tensor


class Losses:
    """Sums over the texts of D calibrations, for S settings.

    Args:
        outcome: of the settings.
        agrees: [N, L] bool.
        draws: of the calibrations.
    """

    def __init__(self, outcome: Outcome, agrees: torch.Tensor, draws: Draws) -> None:
        wrong = outcome.wrong(agrees).float()
        self.num_layers, self.samples = agrees.shape[1], int(draws.calibrating[:, 0].sum())
        self.failures = wrong @ draws.calibrating
        judging = draws.judging / draws.judging.sum(0)
        self.wrong, self.layers, self.stops, self.unscored = (
            values.float() @ judging for values in (wrong, outcome.exits, outcome.stops, outcome.unscored)
        )

    def judged(self, promise: float) -> Judged:
        """Calibrate, and judge what was chosen."""
        index = boldest(self.failures, self.samples, 1 - promise, CONFIDENCE)
        none = index < 0

        def taken(values: torch.Tensor, of_full_depth: float) -> torch.Tensor:
            found = values.gather(0, index.clamp(min=0)[None])[0]
            return torch.where(none, of_full_depth, found).double()

        means = Means(
            1 - taken(self.wrong, 0.0),
            1 + taken(self.layers, self.num_layers - 1.0),
            taken(self.stops, 0.0),
            taken(self.unscored, 1.0),
        )
        return Judged(means, none)


def metrics(judged: Judged, promise: float, stop_cost: float) -> dict[str, Any]:
    """Means over the calibrations, as a row has them."""
    means = judged.means
    values = {
        "layers": means.layers.mean(),
        "cost": means.cost(stop_cost).mean(),
        "agreement": means.agreement.mean(),
        "broken": (means.agreement < promise - 1e-6).double().mean(),
        "none_safe": judged.none_safe.double().mean(),
    }
    return {name: round(float(value), DIGITS) for name, value in values.items()}


def fitted(texts: Texts, stop_cost: float, count: int) -> Iterator[Losses]:
    """Calibrations of thresholds per layer: fitted to half of the calibration's texts, shown safe by the other half."""
    for seed in range(count):
        calibrating, judging = half_of(texts.samples, seed)
        fit, shown = calibrating.tensor_split(2)
        rows = torch.cat([shown, judging])
        first = (torch.arange(len(rows)) < len(shown)).float()[:, None]
        outcome = per_layer(texts, fit, rows, stop_cost)
        yield Losses(outcome, texts.agrees[rows], Draws(first, 1 - first))


def joined(several: Sequence[Judged]) -> Judged:
    """The calibrations of all of them."""
    means = Means(*(torch.cat(list(parts)) for parts in zip(*(one.means for one in several), strict=True)))
    return Judged(means, torch.cat([one.none_safe for one in several]))


def measured(parts: dict[str, Part], splits: int = SPLITS, fitted_splits: int = FITTED_SPLITS) -> list[Found]:
    """All rows of a model: its record, and each family under each promise and cost of a look."""
    read = readings(parts[TABLE], parts[JUDGE])
    texts = read.judging.texts
    drawn, population = halves(texts.samples, splits), from_population(texts.samples, splits)
    rows = [found("", facts(texts, len(parts[TABLE].logits)))]
    for cost in STOP_COSTS:
        several = list(fitted(texts, cost, fitted_splits))
        for promise in PROMISES:
            judged = joined([one.judged(promise) for one in several])
            rows.append(found(PER_LAYER, metrics(judged, promise, cost), stop_cost=cost, promise=promise))
    for family in families(read, STOP_COSTS):
        if family.name == ORACLE:
            means = next(iter(family.outcomes.values())).means(texts.agrees)
            reached = {cost: {"layers": float(means.layers), "cost": float(means.cost(cost))} for cost in STOP_COSTS}
            rows += [found(ORACLE, values, stop_cost=cost) for cost, values in reached.items()]
            continue
        made: dict[int, tuple[Losses, Losses]] = {}
        for cost in STOP_COSTS:
            outcome = family.outcomes[cost]
            if id(outcome) not in made:
                made = {id(outcome): (Losses(outcome, texts.agrees, drawn), Losses(outcome, texts.agrees, population))}
            by_halves, by_population = made[id(outcome)]
            for promise in PROMISES:
                broken = (by_population.judged(promise).means.agreement < promise - 1e-6).double().mean()
                values = metrics(by_halves.judged(promise), promise, cost) | {"failed": round(float(broken), DIGITS)}
                rows.append(found(family.name, values, stop_cost=cost, promise=promise))
    return rows


def facts(texts: Texts, table: int) -> dict[str, Any]:
    """Of the record."""
    return {
        "num_layers": texts.num_layers,
        "texts": {"table": table, "judge": texts.samples},
        "agreement_by_exit": [round(float(share), DIGITS) for share in texts.agrees.double().mean(0)],
    }


def settings(splits: int, fitted_splits: int) -> dict[str, Any]:
    """All that the rows follow from besides the model."""
    return {
        "stop_costs": STOP_COSTS, "head_cost": HEAD_COST, "promises": PROMISES, "confidence": CONFIDENCE,
        "splits": splits, "fitted_splits": fitted_splits, "settings": SETTINGS, "learned_share": LEARNED_SHARE,
    }  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__, OUTPUT)
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--fitted-splits", type=int, default=FITTED_SPLITS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    limit = arguments.limit_samples
    of_run = settings(arguments.splits, arguments.fitted_splits)

    def runs(cell: Trained) -> Callable[[float], list[Found]]:
        path = folder_of(cell, arguments.work, limit) / FILE
        return lambda deadline: measured(load_parts(path), arguments.splits, arguments.fitted_splits)

    wanted = [Cell(cell.name, declared(cell, limit) | of_run, runs(cell)) for cell in recorded_cells(arguments)]
    run_missing("plans", wanted, arguments.output, arguments.budget_minutes)


if __name__ == "__main__":
    main()
