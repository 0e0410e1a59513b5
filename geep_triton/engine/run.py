"""Running one window: each batch goes from stop to stop until all its samples are answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

import torch

from geep_triton.engine.batch import Answer, Batch
from geep_triton.engine.batching import Batches
from geep_triton.engine.flight import Run, fly
from geep_triton.engine.layers import WindowLayers
from geep_triton.engine.planner import Planner
from geep_triton.engine.pools import Pools
from geep_triton.engine.scorer import Scorer
from geep_triton.runners.base import StatesT


class WindowRun(Generic[StatesT]):
    """Runs a window's batches to their first stop, and the samples that are not sure there on to the next one.

    Where a batch waits for the device's decision, others have their turn. At most `in_flight` batches hold states, each of at
    most the schedule's token budget (or one longer sample), besides what waits in pools.

    Args:
        layers: run the window's layers.
        scorer: says who leaves at a stop; None: everybody.
        answer_head: which head answers those who are not scored; see `MultiExitBert.forward`.
        pools: in which survivors wait for others; None: they go on in their batch, which shrinks.
        in_flight: how many batches run by turns.
        planner: says where samples stop next, once, after an early exit; None: all stop where they were scheduled to.
    """

    def __init__(
        self,
        layers: WindowLayers[StatesT],
        scorer: Scorer[StatesT] | None = None,
        answer_head: str = "student",
        pools: Pools[StatesT] | None = None,
        in_flight: int = 1,
        planner: Planner[StatesT] | None = None,
    ) -> None:
        self.layers = layers
        self.scorer = scorer
        self.planner = planner
        self.answer_head = answer_head
        self.pools = pools
        self.in_flight = in_flight

    def answers(self, batches: Batches) -> Iterator[Answer]:
        """Every sample of the window in exactly one answer: scheduled batches in order, pools as they fill, the rest last."""
        scheduled = self.layers.embed(batches)

        def start(alone: bool) -> Run[Answer] | None:
            batch = next(scheduled, None) if self.pools is None else self.pools.next_batch(scheduled, alone)
            return None if batch is None else self._run(batch)

        return fly(start, self.in_flight)

    def _run(self, batch: Batch[StatesT]) -> Run[Answer]:
        """Take a batch from stop to stop while some of it stays and does not wait in a pool."""
        if self.planner is not None and batch.layer < self.planner.plan.layer:
            yield from self._plan(self.planner, batch)
            return
        while self.scorer is not None and batch.stop < self.layers.last:
            batch, ran = yield from self.layers.run_to(batch.stop, batch)
            answer, staying = yield from self.scorer.leave(batch, ran)
            if answer is not None:
                yield answer
            if staying is None or (self.pools is not None and self.pools.hold(staying)):
                return
            batch = staying
        yield (yield from self.layers.answer(batch, self.answer_head))

    def _plan(self, planner: Planner[StatesT], batch: Batch[StatesT]) -> Run[Answer]:
        """Take a batch to where it is planned, and each of its parts on from there, unless they wait in a pool."""
        batch, ran = yield from self.layers.run_to(planner.plan.layer, batch)
        answer, parts = yield from planner.part(batch, ran)
        del batch  # the states of all of it, which would be held besides those of its parts
        if answer is not None:
            yield answer
        while parts:
            part = parts.pop(0)
            if self.pools is None or not self.pools.hold(part):
                yield from self._run(part)

    def check(self, first: int, samples: int) -> None:
        """Raise ValueError where samples got logits that are NaN or infinite at a stop; see `NotFinite.check`."""
        for looker in (self.planner, self.scorer):
            if looker is not None:
                looker.not_finite.check(first, samples)

    def every_exit(self, batches: Batches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Logits of every exit, all batches to the last layer: rows [B] and [B, E, C]."""
        scheduled = (self.layers.answer_everywhere(batch) for batch in self.layers.embed(batches))
        return fly(lambda alone: next(scheduled, None), self.in_flight)
