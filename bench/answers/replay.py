"""Calibrations on recorded exits: many at random, and how often their promises are broken. No layer runs.

A calibration here chooses as `calibrate` does, but takes the family that runs the fewest layers, since nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geep_triton import MultiExitBert
from geep_triton.answers import Answers
from geep_triton.engine.predictions import EveryExit
from geep_triton.policies.policy import Policy
from geep_triton.policies.start import LastLayer
from geep_triton.promises.families import Family, FitSamples, error_shares, families_of, least_gain
from geep_triton.promises.guarantees import binomial_p_value
from geep_triton.promises.simulate import simulate
from geep_triton.promises.terms import Term

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Chosen:
    """What a calibration chose.

    Attributes:
        family, policy: those with the fewest mean layers of all that were shown to keep the promise, full depth included.
        mean_layers: on the calibration's samples.
    """

    family: str
    policy: Policy
    mean_layers: float


@dataclass(frozen=True, eq=False)
class Answered:
    """How a policy answers N recorded texts.

    Attributes:
        layers: [N] int64, that each runs.
        broken: for each promise [N] bool, whether it is broken.
        counted: for each promise [N] bool, the texts that it is about. None: all.
    """

    layers: torch.Tensor
    broken: tuple[torch.Tensor, ...]
    counted: tuple[torch.Tensor | None, ...]

    def losses(self, rows: torch.Tensor | slice = slice(None)) -> list[torch.Tensor]:
        """For each promise whether it is broken, for those of the texts `rows` that it is about."""
        return [
            broken[rows] if counted is None else broken[rows][counted[rows]]
            for broken, counted in zip(self.broken, self.counted, strict=True)
        ]


def answered(model: MultiExitBert, record: EveryExit, terms: Sequence[Term], policy: Policy) -> Answered:
    """How a policy answers the texts of a record, beside the last exit."""
    exits = simulate(model, policy, record.tokens, record.logits)
    logits, full = record.logits[torch.arange(len(exits)), exits], record.logits[:, -1]
    pairs = [compared(model.answers, term, logits, full) for term in terms]
    layers = record.layers_run(model.config.exit_layers, exits)
    return Answered(layers, tuple(~same for same, _ in pairs), tuple(counted for _, counted in pairs))


def compared(
    answers: Answers, term: Term, logits: torch.Tensor, full: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Whether a promise is kept for each text, [N] bool; and the texts that it is about, [N] bool (None: all).

    Args:
        answers: they compare.
        term: the promise.
        logits: [N, C] that are given.
        full: [N, C] of the last exit.
    """
    if term.label is None:
        return answers.agree(logits, full), None
    full_given = answers.given(full)
    return answers.given(logits)[:, term.label] == full_given[:, term.label], term.counts(full_given)


class Replay:
    """Calibrates on rows of a record.

    Args:
        model: whose exits were recorded; its `exit_config` says how scores are compared.
        record: every exit's answers to N texts.
        terms: promises on answers, all of them shares of texts.
        score_cost: of a text at an exit, in layers.
        families: those that share the error. None: those that `calibrate` tries.
    """

    def __init__(
        self,
        model: MultiExitBert,
        record: EveryExit,
        terms: Sequence[Term],
        score_cost: float,
        families: Sequence[Family] | None = None,
    ) -> None:
        self.model, self.record, self.terms, self.score_cost = model, record, terms, score_cost
        self.layers = model.config.exit_layers
        self.families = families_of(model) if families is None else families
        self.shares = error_shares(self.families)
        self.full = Policy(LastLayer())
        self._answered: dict[Policy, Answered] = {}

    def of_all(self, policy: Policy) -> Answered:
        """How a policy answers all N texts. Kept, since policies come again."""
        if policy not in self._answered:
            self._answered[policy] = answered(self.model, self.record, self.terms, policy)
        return self._answered[policy]

    def calibrated(self, rows: torch.Tensor) -> Chosen:
        """Calibrate on the texts `rows` [M] int64, which are in random order and may come again."""
        chosen = Chosen("full", self.full, float(self.layers[-1]))
        best = chosen.mean_layers
        for name, policy in self.boldest(rows).items():
            mean = self.mean_layers(policy, rows)
            counted = mean * least_gain(name)
            if counted < best:
                best, chosen = counted, Chosen(name, policy, mean)
        return chosen

    def boldest(self, rows: torch.Tensor) -> dict[str, Policy]:
        """Family -> its boldest policy that is shown to keep the promises, for the families that have one.

        Families are fitted to the first half of the texts `rows`, and those that are fitted are judged by the others.
        """
        half = len(rows) // 2
        fit = FitSamples.of(self.record.select(rows[:half]), self.layers, self.score_cost, self.model.answers)
        judging = self.record.select(rows[half:])
        found = {}
        for family in self.families:
            confidence = 1 - (1 - CONFIDENCE) * self.shares[family.name]
            for policy in family.policies(fit):  # up to the first that is not safe (fixed-sequence Learn-then-Test)
                if family.fitted:  # of this calibration alone: only those who judge are simulated
                    losses = answered(self.model, judging, self.terms, policy).losses()
                else:
                    losses = self.of_all(policy).losses(rows)
                if not self._are_kept(losses, confidence):
                    break
                found[family.name] = policy
        return found

    def _are_kept(self, losses: Sequence[torch.Tensor], confidence: float) -> bool:
        """Whether these losses show with confidence that all promises are kept."""
        return all(
            binomial_p_value(int(of_term.sum()), len(of_term), term.risk) <= 1 - confidence
            for of_term, term in zip(losses, self.terms, strict=True)
        )

    def kept(self, policy: Policy, rows: torch.Tensor) -> list[float]:
        """For each promise the share of the texts `rows` that it is about and that it is kept for."""
        return [1 - float(losses.double().mean()) for losses in self.of_all(policy).losses(rows)]

    def is_broken(self, policy: Policy, rows: torch.Tensor) -> bool:
        """Whether any promise is broken on the texts `rows`."""
        pairs = zip(self.kept(policy, rows), self.terms, strict=True)
        return any(share < term.value - 1e-9 for share, term in pairs)

    def mean_layers(self, policy: Policy, rows: torch.Tensor) -> float:
        """Layers that the texts `rows` run on average."""
        return float(self.of_all(policy).layers[rows].double().mean())


@dataclass(frozen=True)
class Draws:
    """Many calibrations.

    Attributes:
        broken: whether each one's promise was.
        mean_layers: of the texts that judged it.
        families: that were chosen.
    """

    broken: list[bool]
    mean_layers: list[float]
    families: list[str]


def splits(replay: Replay, count: int, size: int) -> Draws:
    """Calibrations on `size` texts at random, each judged by the others.

    A promise counts as broken where the share that was measured on the others is lower than promised, by however little. That
    happens more often than the promise fails: the others are few too, and where the one part is lucky the other is not.
    """
    draws = Draws([], [], [])
    for seed in range(count):
        order = torch.randperm(len(replay.record.tokens), generator=torch.Generator().manual_seed(seed))
        judge(replay, order[:size], order[size:], draws)
    return draws


def from_a_population(replay: Replay, count: int, size: int) -> Draws:
    """Calibrations on `size` texts drawn with replacement, each judged by all recorded texts.

    The record is the population here, which is known as a whole, so that this counts how often the promise itself fails.
    """
    draws, texts = Draws([], [], []), len(replay.record.tokens)
    for seed in range(count):
        rows = torch.randint(texts, (size,), generator=torch.Generator().manual_seed(seed))
        judge(replay, rows, torch.arange(texts), draws)
    return draws


def judge(replay: Replay, rows: torch.Tensor, others: torch.Tensor, draws: Draws) -> None:
    """Calibrate on `rows`, and add what it comes to on the others."""
    chosen = replay.calibrated(rows)
    draws.broken.append(replay.is_broken(chosen.policy, others))
    draws.mean_layers.append(replay.mean_layers(chosen.policy, others))
    draws.families.append(chosen.family)
