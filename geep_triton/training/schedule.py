"""Learning-rate schedules of trainings in stages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def one_after_another(optimizer: Optimizer, schedules: Sequence[LambdaLR], bounds: Sequence[int]) -> LambdaLR:
    """Schedules of the same optimizer, each counting its steps from its own first one.

    Args:
        optimizer: to schedule.
        schedules: one per stage, the same for all parameter groups.
        bounds: first step of each stage, then the number of steps.
    """

    def factor(step: int) -> float:
        stage = min(bisect_right(bounds, step) - 1, len(schedules) - 1)
        return schedules[stage].lr_lambdas[0](step - bounds[stage])

    return LambdaLR(optimizer, factor)
