"""The statistics of promises, which hold where calibration samples are exchangeable with those to come."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from scipy.stats import binom, binomtest

from geep_triton.warn import warn

FEWEST_DISTINCT = 0.9  # of the samples; short texts come again by chance


def binomial_p_value(failures: int, samples: int, risk: float) -> float:
    """P(at most `failures` of `samples` fail | each fails with probability `risk`). Small where the true risk is lower."""
    return float(binom.cdf(failures, samples, risk))


def binomial_interval(failures: int, samples: int, confidence: float) -> tuple[float, float]:
    """Clopper and Pearson's two-sided interval for the probability of a failure."""
    interval = binomtest(failures, samples).proportion_ci(confidence, "exact")
    return float(interval.low), float(interval.high)


def betting_p_value(losses: torch.Tensor, risk: float, confidence: float) -> float:
    """P-value of "the mean loss is `risk` or more", for losses in [0, 1] in random order (Waudby-Smith and Ramdas 2020).

    A gambler bets against the hypothesis, loss by loss. If it is true, the fortune is a supermartingale, so that by Ville's
    inequality it ever exceeds 1/p with probability at most p. Bets use the variance of the losses: a small drop of accuracy
    could not be shown without it.
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
    """How many samples without a failure show, with this confidence, that the risk is below `risk`."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-risk))


def boldest_safe(p_values: Sequence[float], confidence: float) -> int | None:
    """Index of the last setting before the first one that is not shown to be safe; None where already the first is not.

    Settings are ordered from cautious to bold before the data are seen. Testing stops at the first failure, so their number
    needs no correction (fixed-sequence Learn-then-Test, Angelopoulos et al. 2021).
    """
    chosen = None
    for index, p_value in enumerate(p_values):
        if p_value > 1 - confidence:
            break
        chosen = index
    return chosen


def bets_needed(p_value: Callable[[torch.Tensor, float, float], float], risk: float, confidence: float) -> int:
    """How many samples without a loss show by betting that the mean is below `risk`: by `betting_p_value`, or in its manner."""

    def shown(samples: int) -> bool:
        return p_value(torch.zeros(samples), risk, confidence) <= 1 - confidence

    enough = 1
    while not shown(enough):
        enough *= 2
    low = enough // 2
    while low + 1 < enough:
        middle = (low + enough) // 2
        low, enough = (low, middle) if shown(middle) else (middle, enough)
    return enough


def samples_needed_on_average(risk: float) -> int:
    """How many samples without a loss let `boldest_on_average` choose a setting."""
    return math.ceil(1 / risk) - 1


def boldest_on_average(losses: torch.Tensor, risk: float) -> int | None:
    """Index of the boldest setting whose expected loss on a new sample is at most `risk`; None where there is none.

    This is conformal risk control (Angelopoulos et al. 2022); for agreement CATs do the same (Schuster et al. 2021). It holds
    on average over calibration sets, and no further confidence is stated. The guarantee needs losses that do not fall as
    settings get bolder, so a loss counts for its own setting and all bolder ones.

    Args:
        losses: [S, N] at most 1, a row for each setting, from cautious to bold. A gain (a loss below 0) counts as 0, since
            full depth, the fallback, has loss 0.
        risk: the loss that is allowed.
    """
    worst = losses.double().clamp(min=0).cummax(0).values
    safe = (worst.sum(1) + 1) / (losses.shape[1] + 1) <= risk
    return int(safe.sum()) - 1 if bool(safe.any()) else None


def warn_of_repeated(distinct: int, samples: int, many: str, one: str) -> None:
    """Warn of many equal samples. They may come again as often as they will be served, but a list must not be repeated.

    Args:
        distinct: how many of the `samples` differ.
        samples: how many there are.
        many, one: what they are called.
    """
    if distinct < FEWEST_DISTINCT * samples:
        warn(f"only {distinct} of {samples} {many} are distinct: a promise takes each for a {one} of its own, drawn anew")
