"""Samples that run together, and their answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

import torch

from geep_triton.engine.batching import joined
from geep_triton.runners.base import Runner, StatesT


@dataclass(frozen=True, eq=False)
class Batch(Generic[StatesT]):
    """Samples that stand after the same layer and have the same stop before them.

    Attributes:
        rows: [B] int64 on the host, which samples of the window.
        states: of the samples. Only the runner looks into them.
        stop: the layer at which they are scored or answered next.
        layer: the layer after which they stand; 0: they are embedded.
        path: the planned path that they share; 0 where paths are not planned.
        prediction, streak: [B], what patience needs to know of the exit before; None: they were not scored yet.
    """

    rows: torch.Tensor
    states: StatesT
    stop: int
    layer: int = 0
    path: int = 0
    prediction: torch.Tensor | None = None
    streak: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.rows.numel()

    def after(self, layer: int, states: StatesT) -> Batch[StatesT]:
        """The same samples after another layer."""
        return Batch(self.rows, states, self.stop, layer, self.path, self.prediction, self.streak)

    def take(self, runner: Runner[StatesT], chosen: torch.Tensor | slice, order: torch.Tensor | slice) -> Batch[StatesT]:
        """Some of the samples: `chosen` says which on the host, `order` [K] int64 on the device; or the same slice twice."""
        states = runner.take(self.states, order, self.states.lengths[chosen])
        prediction, streak = (None if value is None else value[order] for value in (self.prediction, self.streak))
        return Batch(self.rows[chosen], states, self.stop, self.layer, self.path, prediction, streak)

    @classmethod
    def join(cls, runner: Runner[StatesT], parts: list[Batch[StatesT]]) -> Batch[StatesT]:
        """All samples of several batches with the same layer, stop and path."""
        states = runner.join([part.states for part in parts])
        if len(parts) == 1:
            return replace(parts[0], states=states)
        prediction, streak = (joined([getattr(part, name) for part in parts]) for name in ("prediction", "streak"))
        rows = torch.cat([part.rows for part in parts])
        return replace(parts[0], rows=rows, states=states, prediction=prediction, streak=streak)


@dataclass(frozen=True, eq=False)
class Answer:
    """Samples that were answered together.

    Attributes:
        rows: [B] int64 on the host, which samples.
        logits: [B, C].
        exit_layer: the layer after which they were answered.
        layers_run: how many layers they ran, had they skipped none.
    """

    rows: torch.Tensor
    logits: torch.Tensor
    exit_layer: int
    layers_run: int
