"""Curriculum: how much of the training set, easiest samples first, is drawn from at which point of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from geep_triton.checks import check_choice, check_int, check_number

SCHEDULES = ("competence", "staged")
GROUPED_BATCHES = 16


def competence(progress: float, start: float) -> float:
    """c(t) = min(1, sqrt(t (1 - c0^2) + c0^2)) (Platanios et al. 2019, eq. 7), t = progress, c0 = start."""
    return min(1.0, math.sqrt(progress * (1 - start**2) + start**2))


def staged(progress: float, buckets: int) -> float:
    """One bucket of equal size more in each equal part of the training; the last part has all."""
    return min(1.0, (math.floor(progress * buckets) + 1) / buckets)


@dataclass(frozen=True)
class Curriculum:
    """Share of the training that is over -> share of the training set to draw from.

    Attributes:
        schedule: "competence" or "staged".
        start: first share, of "competence".
        buckets: of "staged".
        until: share of the training after which all data are in.

    Raises:
        ValueError, TypeError: settings out of range.
    """

    schedule: str = "competence"
    start: float = 0.1
    buckets: int = 4
    until: float = 0.5

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_number("start", self.start, 1e-6, 1.0)
        check_int("buckets", self.buckets, 1)
        check_number("until", self.until, 1e-6, 1.0)

    def __call__(self, progress: float) -> float:
        """0..1 -> 0..1."""
        progress = min(1.0, progress / self.until)
        return competence(progress, self.start) if self.schedule == "competence" else staged(progress, self.buckets)


class TrainSampler(Sampler[int]):
    """N samples an epoch, by a curriculum, and batches of like length where lengths are given.

    What an epoch draws follows from seed and epoch alone: all processes draw the same, and a resumed training draws what the
    first one would have. The easiest samples are passed over again and again in new random orders, each sample once a pass;
    with all data in, an epoch that starts so is one pass.

    Args:
        num_samples: N.
        seed: of all draws.
        epoch: gives the number of the epoch, from 0, at its start.
        difficulty: [N], higher is harder; ties are broken at random. None: no curriculum.
        curriculum: see `MultiExitTrainer`; None: all samples from the start.
        total: samples that the training draws in all.
        lengths: [N] tokens; None: batches of mixed lengths.
        batch_size: over all processes and accumulation steps; for grouping by length.
    """

    def __init__(
        self,
        num_samples: int,
        seed: int,
        epoch: Callable[[], int],
        difficulty: torch.Tensor | None = None,
        curriculum: Callable[[float], float] | None = None,
        total: int = 0,
        lengths: Sequence[int] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = epoch
        self.curriculum = curriculum
        self.total = total
        self.lengths = lengths
        self.batch_size = batch_size
        if curriculum is not None:
            shuffled = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
            order = shuffled[difficulty[shuffled].argsort(stable=True)]
            self.rank = order.argsort().tolist()

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        generator = torch.Generator().manual_seed(self.seed + epoch)
        drawn = self._draw(epoch, generator)
        return iter(drawn if self.lengths is None else self._grouped(drawn, generator))

    def _draw(self, epoch: int, generator: torch.Generator) -> list[int]:
        if self.curriculum is None:
            return torch.randperm(self.num_samples, generator=generator).tolist()
        drawn: list[int] = []
        while True:
            for index in torch.randperm(self.num_samples, generator=generator).tolist():
                share = self.curriculum(min(1.0, (epoch * self.num_samples + len(drawn)) / self.total))
                if self.rank[index] < math.ceil(share * self.num_samples):
                    drawn.append(index)
                    if len(drawn) == self.num_samples:
                        return drawn

    def _grouped(self, drawn: list[int], generator: torch.Generator) -> list[int]:
        """Sorted by length within a few batches, whose order is then random; a last part of a batch stays last."""
        window = GROUPED_BATCHES * self.batch_size
        grouped: list[int] = []
        for first in range(0, len(drawn), window):
            part = sorted(drawn[first : first + window], key=self.lengths.__getitem__, reverse=True)
            whole = len(part) // self.batch_size
            for batch in torch.randperm(whole, generator=generator).tolist():
                grouped += part[batch * self.batch_size : (batch + 1) * self.batch_size]
            grouped += part[whole * self.batch_size :]
        return grouped
