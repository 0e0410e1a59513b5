"""Counts answers that are no numbers, which would go unnoticed, since their samples go on to a later exit."""

from __future__ import annotations

import torch


class NotFinite:
    """Counts of logits that are NaN or infinite, by stop. They stay on the device until they are checked."""

    def __init__(self) -> None:
        self._counts: list[tuple[int, torch.Tensor]] = []

    def add(self, stop: int, count: torch.Tensor) -> None:
        """Note how many samples [1] of a batch had such logits at a stop."""
        self._counts.append((stop, count))

    def check(self, first: int, samples: int) -> None:
        """Raise ValueError where there were any. This waits for a GPU.

        Args:
            first: the number of the window's first sample.
            samples: how many samples the window has.
        """
        if not self._counts:
            return
        bad = torch.cat([count for _, count in self._counts]).tolist()
        for (stop, _), count in zip(self._counts, bad, strict=True):
            if count:
                raise ValueError(
                    f"{count} of the samples {first} to {first + samples - 1} got logits that are NaN or infinite at the exit "
                    f"of layer {stop}"
                )
