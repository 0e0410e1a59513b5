"""Auditing while serving: a random share of the samples also runs to the end."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from geep_triton.checks import check_number
from geep_triton.exits.guarantees import binomial_interval


@dataclass(frozen=True)
class AuditReport:
    """What an audit has seen so far.

    Attributes:
        samples: audited.
        agreement: share of them that got the last exit's answer; None before the first.
        interval: of the agreement, at the audit's confidence for one look (Clopper and Pearson).
        promised: the agreement that was promised; None where none was.
        holds: False once the audit has shown, at its confidence however often one looks, that the promise is broken; True
            while it has not; None without a promise.
    """

    samples: int
    agreement: float | None
    interval: tuple[float, float]
    promised: float | None
    holds: bool | None


class Audit:
    """Counts how often audited samples get the last exit's answer, and warns once when a promise no longer holds.

    Args:
        rate: share of the samples to audit, above 0, at most 1.
        promised: agreement to hold the answers to; None: only observed.
        confidence: of the interval.
        seed: of the choice.
    """

    def __init__(self, rate: float, promised: float | None = None, confidence: float = 0.95, seed: int = 0) -> None:
        check_number("rate", rate, 0.0, 1.0)
        check_number("confidence", confidence, 0.5, 0.9999)
        if rate == 0:
            raise ValueError("rate must be above 0, got 0")
        if promised is not None:
            check_number("promised", promised, 0.0, 1.0)
            if promised == 0:
                raise ValueError("promised must be above 0, got 0")
        self.rate = rate
        self.promised = promised
        self.confidence = confidence
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = 0
        self._differing = 0
        self._log_wealth = 0.0
        self._broken = False

    def choose(self, samples: int) -> torch.Tensor:
        """[K] int64, which of a window's samples are audited."""
        return (torch.rand(samples, generator=self._generator) < self.rate).nonzero()[:, 0]

    def record(self, agrees: torch.Tensor) -> None:
        """Count audited samples [K] bool."""
        for agreeing in agrees.tolist():
            self._bet(not agreeing)
            self._samples += 1
            self._differing += not agreeing
        if self._broken or self._log_wealth < -math.log(1 - self.confidence):
            return
        self._broken = True
        report = self.report()
        warnings.warn(
            f"of {report.samples} audited samples {report.agreement:.1%} got the full model's answer, which shows at "
            f"confidence {self.confidence:g} that fewer than the promised {self.promised:.1%} do: the inputs are "
            "not like those of the calibration; calibrate again",
            stacklevel=2,
        )

    def _bet(self, differs: bool) -> None:
        """Bet on one sample that more differ than promised; while the promise holds, wealth never grows on average.

        So it reaches 1 / (1 - confidence) with probability 1 - confidence at most, whenever one looks (Ville's inequality).
        """
        if self.promised is None:
            return
        allowed = max(1 - self.promised, 1e-6)
        rate = (self._differing + allowed) / (self._samples + 1)
        stake = min(max(0.0, (rate - allowed) / (allowed * (1 - allowed))), 0.5 / allowed)
        self._log_wealth += math.log1p(stake * (differs - allowed))

    def report(self) -> AuditReport:
        """What was seen so far."""
        if not self._samples:
            return AuditReport(0, None, (0.0, 1.0), self.promised, holds=None if self.promised is None else True)
        low, high = binomial_interval(self._differing, self._samples, self.confidence)
        agreement = 1 - self._differing / self._samples
        holds = None if self.promised is None else not self._broken
        return AuditReport(self._samples, agreement, (1 - high, 1 - low), self.promised, holds)
