"""Curriculum learning: the share of the training set, easiest samples first, that is in use at each point of the training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch.utils.data import Sampler

from geep_triton.checks import check_choice, check_int, check_number

SCHEDULES = ("competence", "staged")
GROUPED_BATCHES = 16


def competence(progress: float, start: float) -> float:
    """c(t) = min(1, sqrt(t (1 - c0^2) + c0^2)) with t = progress and c0 = start (Platanios et al. 2019, eq. 7)."""
    return min(1.0, math.sqrt(progress * (1 - start**2) + start**2))


def staged(progress: float, buckets: int) -> float:
    """One more bucket of equal size in each equal part of the training. The last part uses all buckets."""
    return min(1.0, (math.floor(progress * buckets) + 1) / buckets)


@dataclass(frozen=True)
class Curriculum:
    """A function from the share of the training that is over to the share of the training set to draw from.

    Attributes:
        schedule: "competence" or "staged".
        start: the first share, for "competence".
        buckets: number of buckets, for "staged".
        until: share of the training after which all samples are in use.

    Raises:
        ValueError: a setting is out of range.
        TypeError: a setting has another type.
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
        """Map progress 0..1 to a share 0..1."""
        progress = min(1.0, progress / self.until)
        return competence(progress, self.start) if self.schedule == "competence" else staged(progress, self.buckets)


class TrainSampler(Sampler[int]):
    """Draws N samples per epoch by a curriculum, in batches of similar length if lengths are given.

    The draws of an epoch depend only on the seed and the epoch. So all processes draw the same samples, and a resumed training
    continues with the same draws. The sampler goes over the samples in use again and again, each time in a new random order and
    each sample once. An epoch that starts with all samples in use is one such pass.

    Args:
        num_samples: N.
        seed: seed of all draws.
        epoch: returns the number of the current epoch, from 0.
        difficulty: [N], higher is harder. Ties are broken at random. None if there is no curriculum.
        curriculum: see `MultiExitTrainer`. None: all samples are in use from the start.
        total: number of samples that the whole training draws.
        lengths: [N] numbers of tokens. None: batches have mixed lengths.
        batch_size: samples per step over all processes and accumulation steps, for grouping by length.
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
        if curriculum is not None and difficulty is not None:
            shuffled = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
            order = shuffled[difficulty[shuffled].argsort(stable=True)]
            self.rank = order.argsort().tolist()

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch()
        generator = torch.Generator().manual_seed(self.seed + epoch)
        drawn = self._draw(epoch, generator)
        return iter(drawn if self.lengths is None else self._grouped(drawn, self.lengths, generator))

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

    def _grouped(self, drawn: list[int], lengths: Sequence[int], generator: torch.Generator) -> list[int]:
        """Sort by length within windows of a few batches, then shuffle the batches of each window. A partial batch stays at the
        end.
        """
        window = GROUPED_BATCHES * self.batch_size
        grouped: list[int] = []
        for first in range(0, len(drawn), window):
            part = sorted(drawn[first : first + window], key=lengths.__getitem__, reverse=True)
            whole = len(part) // self.batch_size
            for batch in torch.randperm(whole, generator=generator).tolist():
                grouped += part[batch * self.batch_size : (batch + 1) * self.batch_size]
            grouped += part[whole * self.batch_size :]
        return grouped


def get_curriculum(schedule: str, **settings: Any) -> Curriculum:
    """A curriculum by its schedule, with its settings by name.

    Raises:
        ValueError: the schedule or a setting is unknown (the error names the known ones), or a setting is out of range.
        TypeError: a setting has another type.
    """
    known = [field.name for field in fields(Curriculum) if field.name != "schedule"]
    for name in settings:
        if name not in known:
            raise ValueError(f"a curriculum has no setting {name!r}; known: {', '.join(known)}")
    return Curriculum(schedule, **settings)
