"""Counts of where samples left under a policy, over all calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from geep_triton.policies.policy import OneExitWarning, Policy
from geep_triton.policies.text import describe
from geep_triton.warn import warn

ENOUGH = 50  # samples; where so many all left at one layer, a warning says so


class ExitCounts:
    """Counts samples by exit, and warns once where a policy that chooses chose nothing.

    Args:
        num_layers: of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._counts: Counter[int] = Counter()
        self._warned = False

    def add(self, histogram: Mapping[int, int]) -> None:
        """Count further samples. `histogram` maps an exit layer to the number of samples that left there."""
        self._counts += Counter(histogram)

    def warn_of_one(self, policy: Policy) -> None:
        """Warn where enough samples were answered, and all at one exit."""
        counts = self._counts
        if self._warned or sum(counts.values()) < ENOUGH or len(counts) != 1:
            return
        self._warned = True
        (layer,) = counts
        where = "none left before the last layer" if layer == self._num_layers else f"all left at layer {layer}"
        warn(
            f"policy {describe(policy)}: of {counts[layer]} samples {where}; its settings, the exit table or its forecasts "
            "tell none of them apart",
            OneExitWarning,
        )
