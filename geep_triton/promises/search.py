"""The search for the fastest policy that keeps a promise, among the settings of all families and dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from tqdm.auto import tqdm

from geep_triton.calibrated import Candidate
from geep_triton.engine.engine import Engine
from geep_triton.policies.policy import Policy
from geep_triton.promises.choosing import choose_setting
from geep_triton.promises.contenders import Contender, Samples
from geep_triton.promises.families import FULL, Family, FitSamples, full_family, least_gain
from geep_triton.promises.judge import Judge, Verdict
from geep_triton.promises.speeds import full_depth, speeds_of
from geep_triton.promises.terms import CannotPromise, Term

MEASURED_POINTS = 6  # of the chosen family's curve
ATTEMPTS = 4  # at a speed-up

Cell = tuple[str, str]  # dtype, name of a family
Settings = dict[Cell, list[int]]  # indices of some settings of a cell
Run = tuple[str, str, int]  # dtype, name of a family, index of a setting
Timed = tuple[Engine, Policy]


@dataclass(frozen=True, eq=False)
class Measured:
    """Candidates that were timed in turns.

    Attributes:
        full: dtype -> full depth.
        settings: cell -> some of its settings.
    """

    full: dict[str, Candidate]
    settings: dict[Cell, list[Candidate]]


def cells_of(families: Sequence[Family], dtypes: Sequence[str]) -> dict[Cell, Family]:
    """What a search judges: the families in each dtype. Full depth in the first dtype is what all are compared with.

    In the others it changes answers, and is judged like a family of one policy.
    """
    cells = {(dtypes[0], family.name): family for family in families}
    for dtype in dtypes[1:]:
        cells |= {(dtype, family.name): family for family in (full_family(), *families)}
    return cells


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found; see `geep_triton.promises.calibration.Calibration`."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    unsafe: tuple[str, ...]
    curve: tuple[Candidate, ...]
    full_depths: tuple[Candidate, ...]


class Search:
    """Judges every setting of every cell on recorded answers, and measures the boldest that keep the promise.

    Args:
        contenders: the ways of running layers. The others are compared with the first.
        samples: they judge, in their order.
        cells: see `cells_of`.
        confidences: cell -> the confidence of its own test; None: a promise on average.
        terms: the promises on answers, or the budget.
        method: "learn-then-test" or "conformal".
        rounds, speed_samples: see `geep_triton.promises.calibrate.calibrate`.
    """

    def __init__(
        self,
        contenders: Sequence[Contender],
        samples: Samples,
        cells: Mapping[Cell, Family],
        confidences: Mapping[Cell, float | None],
        terms: Sequence[Term],
        method: str,
        rounds: int,
        speed_samples: int,
    ) -> None:
        self.confidences, self.terms, self.rounds = confidences, terms, rounds
        self.conformal = method == "conformal"
        self.engines = {contender.dtype: contender.engine for contender in contenders}
        engine, first = contenders[0].engine, contenders[0].dtype
        self.first, self.progress = first, engine.progress
        model, skip = engine.model, engine.policy.skip
        self.num_layers = model.config.num_hidden_layers
        self.full_depth = full_depth(engine)
        self.half, self.order = len(samples.inputs) // 2, samples.order
        full, fitting = samples.record.logits[:, -1], self.order[: self.half]
        judges, fits, self.full = {}, {}, {}
        for contender in contenders:
            dtype, stop_layers = contender.dtype, contender.engine.layer_costs.stop_layers
            judges[dtype] = Judge(model, contender.record, samples.truth, self.order, terms, full, dtype)
            self.full[dtype] = judges[dtype](self.full_depth, FULL, slice(contender.seen, None)).candidate
            record = contender.record.select(fitting)
            fits[dtype] = FitSamples.of(record, model.config.exit_layers, stop_layers, model.answers, full[fitting])
        # What a family or its dtype was fitted to does not judge it.
        seen = {contender.dtype: contender.seen for contender in contenders}
        self.unfitted = {
            cell: slice(max(self.half if family.fitted else 0, seen[cell[0]]), None) for cell, family in cells.items()
        }
        self.policies: dict[Cell, list[Policy]] = {}
        self.judged: dict[Cell, list[Verdict]] = {}
        for cell, family in tqdm(cells.items(), desc="calibrate", disable=not self.progress):
            dtype, name = cell
            self.policies[cell] = [replace(policy, skip=skip) for policy in family.policies(fits[dtype])]
            self.judged[cell] = [judges[dtype](policy, name, self.unfitted[cell]) for policy in self.policies[cell]]
        # Speed is measured on samples to which no family was fitted. With "conformal" these are the ones that do not judge,
        # since the samples that judge must have no part in the choice of a family.
        timed = fitting if self.conformal else self.order.flip(0)
        self.timed_inputs = [samples.inputs[row] for row in timed[:speed_samples].tolist()]

    def run(self) -> Found:
        """Search."""
        measured = self._measure_boldest()
        first = measured.full[self.first]
        chosen = _best([first, *chain(*measured.settings.values())], self.terms)
        kept = {cell: _within(several, self.terms) for cell, several in measured.settings.items()}
        others = [several for cell, several in kept.items() if several and cell != (self.first, FULL)]
        candidates = first, *map(_most_faithful, others)
        if self.conformal and chosen != first:
            chosen = self._again(_cell(chosen))
        unsafe = tuple(self._named(cell) for cell, several in kept.items() if not several)
        return Found(chosen, candidates, unsafe, tuple(self._curve(chosen)), tuple(measured.full.values()))

    def _again(self, cell: Cell) -> Candidate:
        """The fastest setting of the cell that the first half of the samples has chosen, by the second half.

        That one had no part in the choice of the cell. Full depth in the same dtype is more cautious than each of its settings.
        """
        dtype, _ = cell
        later = slice(max(self.half, self.unfitted[cell].start), None)
        index = self.choose(cell, later, self.num_layers)
        again = self.measure({} if index is None else {cell: [index]})
        settings = list(chain(*again.settings.values()))
        full = [again.full[self.first], *([again.full[dtype]] if settings and dtype != self.first else [])]
        return _best(full + settings, self.terms)

    def judging(self, chosen: Candidate) -> torch.Tensor:
        """[M] int64, the samples on which the figures of a candidate are."""
        return self.order[self.unfitted.get(_cell(chosen), slice(None))]

    def choose(self, cell: Cell, judging: slice, num_layers: float) -> int | None:
        """Index of the setting to take of a cell, judged by the samples `judging`; see `choose_setting`.

        For a promise on answers a dtype's policies are only tested once its full depth has kept the promise, with all the error
        that the dtype has. Then none of it is spent on a dtype that changes too many answers (a sequence of tests, each of
        which waits for the one before it: serial gatekeeping).
        """
        dtype, name = cell
        if self.terms[0].on_answers and dtype != self.first and name != FULL:
            full = dtype, FULL
            if self.choose(full, judging if self.conformal else self.unfitted[full], num_layers) is None:
                return None
        return choose_setting(self.judged[cell], self.terms, self.confidences[cell], judging, num_layers)

    def measure(self, settings: Settings) -> Measured:
        """Measure these settings, and full depth in each dtype, in turns."""
        runs: dict[Run, Timed] = {(dtype, FULL, 0): (engine, self.full_depth) for dtype, engine in self.engines.items()}
        for cell, several in settings.items():
            runs |= {(*cell, index): (self.engines[cell[0]], self.policies[cell][index]) for index in several}
        speeds = self._speeds(runs)
        reference = speeds[self.first, FULL, 0]
        full = {dtype: _timed(self.full[dtype], speeds[dtype, FULL, 0], reference) for dtype in self.engines}
        found = {
            cell: [_timed(self.judged[cell][index].candidate, speeds[cell[0], cell[1], index], reference) for index in several]
            for cell, several in settings.items()
        }
        return Measured(full, found)

    def _measure_boldest(self) -> Measured:
        """Measure the boldest setting of each cell that keeps the promise; for a speed-up, bolder ones until one has it."""
        judging = {cell: slice(0, self.half) for cell in self.unfitted} if self.conformal else self.unfitted
        # Mean layers times speed-up. It is L in the first dtype if time falls as layers do.
        seconds = {dtype: engine.layer_costs.points[-1][1] for dtype, engine in self.engines.items()}
        layers_gained = {cell: self.num_layers * seconds[self.first] / seconds[cell[0]] for cell in judging}
        settings: Settings = {cell: [] for cell in judging}
        too_slow = list(judging)
        for _ in range(ATTEMPTS if self.terms[0].name == "speedup" else 1):
            for cell in too_slow:
                index = self.choose(cell, judging[cell], layers_gained[cell])
                if index is not None and index not in settings[cell]:
                    settings[cell].append(index)
            # All of them are measured again: one that was held up must not pass for slow.
            measured = self.measure(settings)
            found = measured.settings
            too_slow = [cell for cell in settings if settings[cell] and not _within(found[cell], self.terms)]
            layers_gained |= {cell: found[cell][-1].mean_layers * (found[cell][-1].speed_up or 1.0) for cell in too_slow}
            if not too_slow:
                break
        return measured

    def _curve(self, chosen: Candidate) -> list[Candidate]:
        """All settings of the chosen cell. Some are measured, in equal steps of mean layers from one end to the other."""
        cell = _cell(chosen)
        curve = [verdict.candidate for verdict in self.judged.get(cell, [])] or [chosen]
        policies = self.policies.get(cell, [self.full_depth])
        points = {index: (*cell, index) for index in spread(curve)}
        runs = {run: (self.engines[cell[0]], policies[index]) for index, run in points.items()}
        speeds = self._speeds({(self.first, FULL, 0): (self.engines[self.first], self.full_depth)} | runs)
        reference = speeds[self.first, FULL, 0]
        return [
            _timed(candidate, speeds[points[index]], reference) if index in points else candidate
            for index, candidate in enumerate(curve)
        ]

    def _speeds(self, runs: Mapping[Run, Timed]) -> dict[Run, float]:
        return speeds_of(runs, self.timed_inputs, self.rounds, self.progress)

    def _named(self, cell: Cell) -> str:
        """A cell in words."""
        dtype, name = cell
        return name if dtype == self.first else f"{name} in {dtype}"


def _cell(candidate: Candidate) -> Cell:
    return candidate.dtype or "", candidate.family


def spread(curve: Sequence[Candidate]) -> set[int]:
    """Indices of `MEASURED_POINTS` candidates, in about equal steps of mean layers."""
    by_depth = sorted(range(len(curve)), key=lambda index: curve[index].mean_layers)
    low, high = (curve[by_depth[end]].mean_layers for end in (0, -1))
    wanted = [low + (high - low) * step / (MEASURED_POINTS - 1) for step in range(MEASURED_POINTS)]
    return {min(by_depth, key=lambda index: abs(curve[index].mean_layers - depth)) for depth in wanted}


def _timed(candidate: Candidate, speed: float, full: float) -> Candidate:
    return replace(candidate, samples_per_second=speed, speed_up=speed / full)


def _best(candidates: list[Candidate], terms: Sequence[Term]) -> Candidate:
    """The candidate to take: the fastest for a promise on answers, else the one that agrees most of all that are cheap enough.

    The first candidate is full depth. For a promise on answers `least_gain` says by how much a family must be faster.
    """
    if terms[0].on_answers:
        # A policy that runs as many layers as full depth is no faster, whatever was measured.
        full = candidates[0].mean_layers
        return max((each for each in candidates if each.family == FULL or each.mean_layers < full), key=_counted_speed)
    cheap = _within(candidates, terms)
    if not cheap:
        best = max(candidates, key=lambda candidate: candidate.speed_up or 0.0)
        raise CannotPromise(
            f"no policy is {terms[0].value:g} times as fast here; {best.policy} reaches {best.speed_up or 0.0:.2f}"
        )
    return _most_faithful(cheap)


def _counted_speed(candidate: Candidate) -> float:
    return (candidate.samples_per_second or 0.0) / least_gain(candidate.family)


def _within(candidates: list[Candidate], terms: Sequence[Term]) -> list[Candidate]:
    """The candidates that are as cheap as was asked; all of them for a promise on answers."""
    name, value = terms[0].name, terms[0].value
    if name == "speedup":
        return [candidate for candidate in candidates if (candidate.speed_up or 0.0) >= value]
    return [candidate for candidate in candidates if name != "mean_depth" or candidate.mean_layers <= value]


def _most_faithful(candidates: list[Candidate]) -> Candidate:
    """The candidate that agrees most with full depth, and the fastest of equals."""
    return max(candidates, key=lambda candidate: (candidate.agreement, candidate.samples_per_second or 0.0))
