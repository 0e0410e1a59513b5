"""Auditing while serving: a random share of the samples also runs to the end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geep_triton.checks import check_int, check_kind, check_number
from geep_triton.engine.engine import Engine
from geep_triton.engine.promise import Promise
from geep_triton.promises.guarantees import binomial_interval
from geep_triton.tokens.ragged import Tokens
from geep_triton.warn import warn

MEMORY = 500  # audited samples by which the next bet is placed: inputs may change late


def audit(
    engine: Engine, rate: float = 0.01, promised: float | None = None, confidence: float = 0.95, seed: int | None = None
) -> Audit:
    """From now on also run a random share of an engine's samples to the end, and compare.

    A model with skip gates skips by them there, too, also where the policy plans paths; with "+skip:never" it runs every layer.

    Args:
        engine: it carries the audit until its policy changes.
        rate: that share.
        promised: the agreement to hold answers to; None: what `calibrate` promised of this policy, if it did and the exit
            table and temperatures are still those it was made with. Without a promise the audit only observes.
        confidence: of the audit's interval.
        seed: of the choice; None: another one each time.

    Returns:
        The audit, whose `report()` tells the observed agreement; `predict` warns once when it is shown, at this confidence
        however often one looks, that the promise no longer holds. A promise by the method "conformal" holds on average
        over calibrations: any one of them may fall a little short of it, which a long audit finds. Another policy,
        calibration or fit of temperatures ends the audit.

    Raises:
        ValueError: a regression model, or a rate, promise or confidence out of range. TypeError: no engine.
    """
    check_kind("engine", engine, Engine)
    if engine.model.config.num_labels < 2:
        raise ValueError("audit needs classes to compare: a regression model (num_labels=1) has none")
    promise = promise_of(engine)
    if promised is None and promise is not None:
        promised = promise.agreement
    made = Audit(rate, promised, confidence, seed)
    engine.observer = _Auditor(engine, made)
    return made


def promise_of(engine: Engine) -> Promise | None:
    """What was promised of an engine's answers; dropped, aloud, where the table or temperatures are others since."""
    if engine.promise is not None and not engine.promise.holds(engine.model):
        warn("the exit table or temperatures have changed since the calibration: its promise is gone")
        engine.promise = None
    return engine.promise


@dataclass(frozen=True, eq=False)
class _Auditor:
    """Observes an engine for an audit."""

    engine: Engine
    audit: Audit

    def see(self, tokens: Tokens, logits: torch.Tensor) -> None:
        """Run some of a window's samples to the end, and count which of their answers [N, C] are the same."""
        engine, made = self.engine, self.engine.promise
        if made is not None and promise_of(engine) is None and self.audit.promised == made.agreement:
            self.audit.promised = None
        rows = self.audit.choose(len(tokens))
        if rows.numel():
            self.audit.record(logits[rows].argmax(-1) == engine.full_depth(tokens.select(rows)).argmax(-1))

    def end(self) -> None:
        """Say that it ends, since the answers to come are others."""
        warn("the audit that was running ends here: call `audit` again for the new answers")


@dataclass(frozen=True)
class AuditReport:
    """What an audit has seen so far.

    Attributes:
        samples: audited.
        agreement: share of them that got the last exit's answer; None before the first.
        recent: the same, weighted towards about the last 500.
        interval: of the agreement, at the audit's confidence for one look (Clopper and Pearson).
        promised: the agreement that was promised; None where none was.
        holds: False once the audit has shown, at its confidence however often one looks, that the promise is broken; True
            while it has not; None without a promise.
    """

    samples: int
    agreement: float | None
    recent: float | None
    interval: tuple[float, float]
    promised: float | None
    holds: bool | None


class Audit:
    """Counts how often audited samples get the last exit's answer, and warns once when a promise no longer holds.

    Args:
        rate: share of the samples to audit, above 0, at most 1.
        promised: agreement to hold the answers to; None: only observed.
        confidence: of the interval.
        seed: of the choice; None: another one each time.
    """

    def __init__(self, rate: float, promised: float | None = None, confidence: float = 0.95, seed: int | None = None) -> None:
        check_number("rate", rate, 0.0, 1.0)
        check_number("confidence", confidence, 0.5, 0.9999)
        if rate == 0:
            raise ValueError("rate must be above 0, got 0")
        if promised is not None:
            check_number("promised", promised, 0.0, 1.0)
            if promised == 0:
                raise ValueError("promised must be above 0, got 0")
        if seed is not None:
            check_int("seed", seed, -(2**63), 2**63 - 1)
        self.rate = rate
        self.promised = promised
        self.confidence = confidence
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._samples = 0
        self._differing = 0
        self._recent = 0.0 if promised is None else 1 - promised  # share that differs, lately
        self._log_wealth = 0.0
        self._broken = False

    def choose(self, samples: int) -> torch.Tensor:
        """[K] int64, which of a window's samples are audited."""
        return (torch.rand(samples, generator=self._generator) < self.rate).nonzero()[:, 0]

    def record(self, agrees: torch.Tensor) -> None:
        """Count audited samples [K] bool."""
        warned = self._broken
        for agreeing in agrees.tolist():
            self._bet(not agreeing)
            self._samples += 1
            self._differing += not agreeing
            # Before the first the promise itself stands for one sample.
            self._recent += ((not agreeing) - self._recent) / min(self._samples + (self.promised is not None), MEMORY)
        if self._broken and not warned:
            report = self.report()
            warn(
                f"of {report.samples} audited samples {report.agreement:.1%} got the full model's answer, lately about "
                f"{report.recent:.1%}, which shows at confidence {self.confidence:g} that fewer than the promised "
                f"{self.promised:.1%} do: the inputs are not like those of the calibration, or it promised too much; "
                "calibrate again"
            )

    def _bet(self, differs: bool) -> None:
        """Bet on one sample that more differ than promised; while the promise holds, wealth never grows on average.

        So it reaches 1 / (1 - confidence) at any time with probability 1 - confidence at most (Ville's inequality). The stake
        follows what was seen lately, not since the audit began, or a late change would long be held for luck.
        """
        if self.promised is None:
            return
        allowed = max(1 - self.promised, 1e-6)
        stake = min(max(0.0, (self._recent - allowed) / (allowed * (1 - allowed))), 0.5 / allowed)
        self._log_wealth += math.log1p(stake * (differs - allowed))
        self._broken |= self._log_wealth >= -math.log(1 - self.confidence)

    def report(self) -> AuditReport:
        """What was seen so far."""
        if not self._samples:
            return AuditReport(0, None, None, (0.0, 1.0), self.promised, holds=None if self.promised is None else True)
        low, high = binomial_interval(self._differing, self._samples, self.confidence)
        agreement = 1 - self._differing / self._samples
        holds = None if self.promised is None else not self._broken
        return AuditReport(self._samples, agreement, 1 - self._recent, (1 - high, 1 - low), self.promised, holds)
