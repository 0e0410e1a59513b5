"""Auditing while serving: a random share of the samples also runs to the end."""

from __future__ import annotations

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
        interval: of the agreement, at the audit's confidence (Clopper and Pearson).
        promised: the agreement that was promised; None where none was.
        holds: whether the promise may still hold; False once the whole interval lies below it.
    """

    samples: int
    agreement: float | None
    interval: tuple[float, float]
    promised: float | None
    holds: bool


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
        self.rate = rate
        self.promised = promised
        self.confidence = confidence
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = 0
        self._differing = 0
        self._warned = False

    def choose(self, samples: int) -> torch.Tensor:
        """[K] int64, which of a window's samples are audited."""
        return (torch.rand(samples, generator=self._generator) < self.rate).nonzero()[:, 0]

    def record(self, agrees: torch.Tensor) -> None:
        """Count audited samples [K] bool."""
        self._samples += agrees.numel()
        self._differing += int((~agrees).sum())
        report = self.report()
        if not report.holds and not self._warned:
            self._warned = True
            warnings.warn(
                f"of {report.samples} audited samples {report.agreement:.1%} got the full model's answer; at confidence "
                f"{self.confidence:g} the true share is at most {report.interval[1]:.1%}, below the promised "
                f"{self.promised:.1%}: the inputs are not like those of the calibration; calibrate again",
                stacklevel=2,
            )

    def report(self) -> AuditReport:
        """What was seen so far."""
        if not self._samples:
            return AuditReport(0, None, (0.0, 1.0), self.promised, holds=True)
        low, high = binomial_interval(self._differing, self._samples, self.confidence)
        holds = self.promised is None or 1 - low >= self.promised
        return AuditReport(self._samples, 1 - self._differing / self._samples, (1 - high, 1 - low), self.promised, holds)
