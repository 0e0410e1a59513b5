"""Planning batches after an early exit: where each sample stops next."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Generic

import torch

from geep_triton.engine.batch import Answer, Batch
from geep_triton.engine.flight import Copying
from geep_triton.engine.layers import Ran, WindowLayers
from geep_triton.engine.not_finite import NotFinite
from geep_triton.policies.plan import Plan
from geep_triton.runners.base import StatesT


class Planner(Generic[StatesT]):
    """Parts a batch by where its samples are planned to stop.

    Args:
        plan: it plans.
        layers: of the window; they run the head.

    Attributes:
        not_finite: counts answers that are no numbers.
    """

    def __init__(self, plan: Plan, layers: WindowLayers[StatesT]) -> None:
        self.plan = plan
        self.not_finite = NotFinite()
        self._layers = layers
        self._runner = layers.runner

    def part(
        self, batch: Batch[StatesT], ran: Ran | None
    ) -> Generator[Copying, None, tuple[Answer | None, list[Batch[StatesT]]]]:
        """The answer of those who leave at once, and the others by their next stop, the deepest first.

        Who skipped the layer cannot leave: its head never learned to answer for them.

        Args:
            batch: after the layer of the plan.
            ran: which rows ran that layer; None: all.
        """
        logits, flags = self._answers(batch, ran)
        on_device = self.plan.stops(logits, flags)
        # The host must know who stops where. Host and device sort alike, so that one copy will do.
        copying = Copying(on_device)
        order = on_device.argsort(stable=True, descending=True)
        yield copying
        stops = copying.get()
        rows = stops.argsort(stable=True, descending=True)
        answer, parts, begin = None, [], 0
        values, counts = stops.unique(return_counts=True)
        for stop, count in reversed(list(zip(values.tolist(), counts.tolist(), strict=True))):
            end = begin + count
            if stop == self.plan.layer:
                answer = Answer(batch.rows[rows[begin:end]], logits.index_select(0, order[begin:end]), stop, stop)
            elif count == len(batch):
                parts.append(replace(batch, stop=stop))
            else:
                part = batch.take(self._runner, rows[begin:end], order[begin:end])
                parts.append(replace(part, stop=stop))
            begin = end
        return answer, parts

    def _answers(self, batch: Batch[StatesT], ran: Ran | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [B, C], 0 of those who skipped the layer; and who ran it, [B] bool on the device, None for all."""
        if ran is None:
            return self._logits(batch, ran), None
        logits = torch.zeros(len(batch), self._runner.model.config.num_labels, device=self._runner.model.device)
        flags = torch.zeros(len(batch), dtype=torch.bool, device=logits.device)
        if ran.index.numel() == 0:
            return logits, flags
        found = self._logits(batch, ran)
        return logits.to(found.dtype).index_copy(0, ran.index, found), flags.index_fill(0, ran.index, True)

    def _logits(self, batch: Batch[StatesT], ran: Ran | None) -> torch.Tensor:
        """[A, C], of those who ran the layer; it counts those that are no numbers."""
        logits = self._layers.logits_of_ran(batch, ran)
        self.not_finite.add(batch.layer, _count_not_finite(logits))
        return logits


def _count_not_finite(logits: torch.Tensor) -> torch.Tensor:
    """[1], how many rows hold a logit that is NaN or infinite."""
    return (~logits.isfinite().all(1)).sum().view(1)
