"""The search for the fastest policy that keeps a promise, among the settings of all families."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from tqdm.auto import tqdm

from geep_triton.calibrated import Candidate
from geep_triton.engine.engine import Engine
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.start import LastLayer
from geep_triton.promises.choosing import choose_setting
from geep_triton.promises.families import Family, FitSamples, least_gain
from geep_triton.promises.judge import Judge
from geep_triton.promises.terms import CannotPromise, Term
from geep_triton.timing import rates

SEED = 0
MEASURED_POINTS = 6  # of the chosen family's curve
ATTEMPTS = 4  # at a speed-up

Settings = dict[str, list[int]]  # family -> indices of some of its settings
Measured = dict[str, list[Candidate]]  # family -> the same settings, measured; "full" -> full depth


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of a calibration.

    Attributes:
        inputs: N inputs.
        record: every exit's answers to them.
        truth: their true answers, as `geep_triton.engine.truth.true_answers` gives them; None: not known.
    """

    inputs: list[Any]
    record: EveryExit
    truth: torch.Tensor | None


class Search:
    """Judges every setting of every family on recorded answers, and measures the boldest that keep the promise.

    Args:
        engine: it measures, and the policies are for its model.
        samples: they judge, in a random order.
        families: the families of policies to search.
        confidences: family -> the confidence of its own test; None: a promise on average.
        terms: the promises on answers, or the budget.
        method: "learn-then-test" or "conformal".
        rounds, speed_samples: see `geep_triton.promises.calibrate.calibrate`.
    """

    def __init__(
        self,
        engine: Engine,
        samples: Samples,
        families: Sequence[Family],
        confidences: Mapping[str, float | None],
        terms: Sequence[Term],
        method: str,
        rounds: int,
        speed_samples: int,
    ) -> None:
        self.engine, self.confidences, self.terms, self.rounds = engine, confidences, terms, rounds
        self.conformal = method == "conformal"
        model, record, skip = engine.model, samples.record, engine.policy.skip
        self.num_layers = model.config.num_hidden_layers
        self.full_depth = Policy(LastLayer(), skip=skip)
        self.half = len(samples.inputs) // 2
        self.order = order = torch.randperm(len(samples.inputs), generator=torch.Generator().manual_seed(SEED))
        stop_layers = engine.layer_costs.stop_layers
        fit = FitSamples.of(record.select(order[: self.half]), model.config.exit_layers, stop_layers, model.answers)
        self.policies = {family.name: [replace(policy, skip=skip) for policy in family.policies(fit)] for family in families}
        # What a family was fitted to does not judge it.
        self.unfitted = {family.name: slice(self.half if family.fitted else 0, None) for family in families}
        judge = Judge(model, record, samples.truth, order, terms)
        self.judged = {
            name: [judge(policy, name, self.unfitted[name]) for policy in several]
            for name, several in tqdm(self.policies.items(), desc="calibrate", disable=not engine.progress)
        }
        self.full = judge(self.full_depth, "full").candidate
        # Speed is measured on samples to which no family was fitted. With "conformal" these are the ones that do not judge,
        # since the samples that judge must have no part in the choice of a family.
        timed = order[: self.half] if self.conformal else order.flip(0)
        self.timed_inputs = [samples.inputs[row] for row in timed[:speed_samples].tolist()]

    def run(self) -> tuple[Candidate, tuple[Candidate, ...], tuple[str, ...], tuple[Candidate, ...]]:
        """Search. Returns what `Calibration` calls chosen, candidates, unsafe and curve."""
        found = self._measure_boldest()
        chosen = _best(list(chain(*found.values())), self.terms)
        kept = {name: _within(found[name], self.terms) for name in self.policies}
        candidates = found["full"] + [_most_faithful(several) for several in kept.values() if several]
        if self.conformal and chosen.family != "full":
            # The first half has chosen the family. The second half had no part in that, and chooses its setting.
            index = self.choose(chosen.family, slice(self.half, None), self.num_layers)
            again = self.measure({} if index is None else {chosen.family: [index]})
            chosen = _best(list(chain(*again.values())), self.terms)
        unsafe = tuple(name for name, several in kept.items() if not several)
        return chosen, tuple(candidates), unsafe, tuple(self._curve(chosen))

    def judging(self, name: str) -> torch.Tensor:
        """[M] int64, the samples on which the figures of a family's candidates are."""
        return self.order[self.unfitted.get(name, slice(None))]

    def choose(self, name: str, judging: slice, num_layers: float) -> int | None:
        """Index of the setting to take of a family, judged by the samples `judging`; see `choose_setting`."""
        return choose_setting(self.judged[name], self.terms, self.confidences[name], judging, num_layers)

    def measure(self, settings: Settings) -> Measured:
        """Measure these settings and full depth in turns."""
        wanted = {f"{name} {index}": self.policies[name][index] for name, several in settings.items() for index in several}
        speeds = speeds_of(self.engine, {"full": self.full_depth} | wanted, self.timed_inputs, self.rounds)
        return {"full": [_timed(self.full, speeds["full"], speeds["full"])]} | {
            name: [_timed(self.judged[name][index].candidate, speeds[f"{name} {index}"], speeds["full"]) for index in several]
            for name, several in settings.items()
        }

    def _measure_boldest(self) -> Measured:
        """Measure the boldest setting of each family that keeps the promise; for a speed-up, bolder ones until one has it."""
        judging = dict.fromkeys(self.unfitted, slice(0, self.half)) if self.conformal else self.unfitted
        # Mean layers times speed-up. It is L if time falls as layers do.
        layers_gained = dict.fromkeys(judging, float(self.num_layers))
        settings: Settings = {name: [] for name in judging}
        found: Measured = {}
        too_slow = list(judging)
        for _ in range(ATTEMPTS if self.terms[0].name == "speedup" else 1):
            for name in too_slow:
                index = self.choose(name, judging[name], layers_gained[name])
                if index is not None and index not in settings[name]:
                    settings[name].append(index)
            # All of them are measured again: one that was held up must not pass for slow.
            found = self.measure(settings)
            too_slow = [name for name in settings if settings[name] and not _within(found[name], self.terms)]
            layers_gained |= {name: found[name][-1].mean_layers * (found[name][-1].speed_up or 1.0) for name in too_slow}
            if not too_slow:
                break
        return found

    def _curve(self, chosen: Candidate) -> list[Candidate]:
        """All settings of the chosen family. Some are measured, in equal steps of mean layers from one end to the other."""
        curve = [verdict.candidate for verdict in self.judged.get(chosen.family, [])] or [chosen]
        policies = self.policies.get(chosen.family, [self.full_depth])
        points = {str(index): policies[index] for index in spread(curve)}
        speeds = speeds_of(self.engine, {"full": self.full_depth} | points, self.timed_inputs, self.rounds)
        return [
            _timed(candidate, speeds[str(index)], speeds["full"]) if str(index) in points else candidate
            for index, candidate in enumerate(curve)
        ]


def spread(curve: Sequence[Candidate]) -> set[int]:
    """Indices of `MEASURED_POINTS` candidates, in about equal steps of mean layers."""
    by_depth = sorted(range(len(curve)), key=lambda index: curve[index].mean_layers)
    low, high = (curve[by_depth[end]].mean_layers for end in (0, -1))
    wanted = [low + (high - low) * step / (MEASURED_POINTS - 1) for step in range(MEASURED_POINTS)]
    return {min(by_depth, key=lambda index: abs(curve[index].mean_layers - depth)) for depth in wanted}


def speeds_of(engine: Engine, policies: dict[str, Policy], inputs: list[Any], rounds: int) -> dict[str, float]:
    """Samples a second of each policy: the median of interleaved rounds after a warm-up."""
    _ = engine.layer_costs  # measured once, for all of them
    engines = {name: engine.with_policy(policy) for name, policy in policies.items()}
    bar = tqdm(total=rounds * len(engines), desc="measure", unit=" runs", disable=not engine.progress)
    with warnings.catch_warnings(), bar:
        warnings.simplefilter("ignore", OneExitWarning)  # candidates, not what the user chose
        for e in engines.values():
            e.progress = False
            e.predict(inputs[:64])
        calls = {name: partial(e.predict, inputs) for name, e in engines.items()}
        return rates(calls, len(inputs), rounds, lambda name: bar.update())


def _timed(candidate: Candidate, speed: float, full: float) -> Candidate:
    return replace(candidate, samples_per_second=speed, speed_up=speed / full)


def _best(candidates: list[Candidate], terms: Sequence[Term]) -> Candidate:
    """The candidate to take: the fastest for a promise on answers, else the one that agrees most of all that are cheap enough.

    The first candidate is full depth. For a promise on answers `least_gain` says by how much a family must be faster.
    """
    if terms[0].on_answers:
        # A policy that runs as many layers as full depth is no faster, whatever was measured.
        saving = [candidate for candidate in candidates if candidate.mean_layers < candidates[0].mean_layers]
        return max(candidates[:1] + saving, key=_counted_speed)
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
