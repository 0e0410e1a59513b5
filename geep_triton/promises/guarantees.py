"""Promises about exits that hold with a stated confidence, from calibration samples exchangeable with those to come."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.stats import binom, binomtest


def binomial_p_value(failures: int, samples: int, risk: float) -> float:
    """P(at most `failures` of `samples` | each fails with probability `risk`): small where the true risk is lower."""
    return float(binom.cdf(failures, samples, risk))


def binomial_interval(failures: int, samples: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval for the failures' probability."""
    interval = binomtest(failures, samples).proportion_ci(confidence, "exact")
    return float(interval.low), float(interval.high)


def betting_p_value(losses: torch.Tensor, risk: float, confidence: float) -> float:
    """P-value of "the mean loss is `risk` or more", for losses in [0, 1] in random order (Waudby-Smith and Ramdas 2020).

    A gambler bets against it, loss by loss; under the hypothesis the fortune is a supermartingale, so by Ville's inequality
    it exceeds 1/p with probability at most p. Uses the losses' variance, which a small drop of accuracy needs.
    """
    losses = losses.double()
    count = torch.arange(1, len(losses) + 1, dtype=torch.float64)
    mean = (0.5 + losses.cumsum(0)) / (1 + count)
    variance = (0.25 + (losses - mean).square().cumsum(0)) / (1 + count)
    before = torch.cat([variance.new_tensor([0.25]), variance[:-1]])
    bet = (2 * math.log(1 / (1 - confidence)) / (len(losses) * before)).sqrt().clamp(max=1.0)
    fortune = torch.log1p(-bet * (losses - risk)).cumsum(0)
    return float((-fortune.max()).exp().clamp(max=1.0)) if len(losses) else 1.0


def samples_needed(risk: float, confidence: float) -> int:
    """Samples that without a single failure show a risk below `risk` with this confidence."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk))


def boldest_safe(p_values: Sequence[float], confidence: float) -> int | None:
    """Index of the last setting before the first that is not shown to be safe; None where the first is not.

    Settings are ordered from cautious to bold before the data are seen, so testing stops at the first failure and no
    correction for their number is needed (fixed-sequence Learn-then-Test, Angelopoulos et al. 2021).
    """
    chosen = None
    for index, p_value in enumerate(p_values):
        if p_value > 1 - confidence:
            break
        chosen = index
    return chosen


def samples_needed_on_average(risk: float) -> int:
    """Samples after which `boldest_on_average` can choose anything, where none of them is a loss."""
    return math.ceil(1 / risk) - 1


def boldest_on_average(losses: torch.Tensor, risk: float) -> int | None:
    """Index of the boldest setting whose expected loss on a new sample is at most `risk`; None where there is none.

    Conformal risk control (Angelopoulos et al. 2022); for agreement it is what CATs do (Schuster et al. 2021). On average over
    calibration sets: no further confidence is stated. A loss counts from the first setting on that has it, since the
    guarantee needs losses that do not fall as settings get bolder.

    Args:
        losses: [S, N] at most 1, a row for each setting, from cautious to bold. What is gained by a setting (a loss below 0)
            does not count, since falling back to full depth has loss 0.
        risk: the loss that is allowed.
    """
    worst = losses.double().clamp(min=0).cummax(0).values
    safe = (worst.sum(1) + 1) / (losses.shape[1] + 1) <= risk
    return int(safe.sum()) - 1 if bool(safe.any()) else None
