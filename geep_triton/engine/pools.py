"""Pools, in which the survivors of many batches wait after a layer until they fill a dense batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic

import torch

from geep_triton.engine.batch import Batch
from geep_triton.engine.batching import BATCH_COST, dense_count
from geep_triton.engine.costs import LayerCosts
from geep_triton.runners.base import Runner, StatesT


class Pools(Generic[StatesT]):
    """Pools for each layer, next stop and path: first in, first out. One that fills a batch is emptied before more is put in.

    So each pool holds less than a batch of `token_budget` tokens before a batch is put in, and less than two after. Memory is
    bounded by twice the budget (or the longest sample, where that is more) for every pool. After a layer where samples are
    scored all that stay have one next stop; after a layer where exits are planned they have several.

    Args:
        runner: runs the samples' layers.
        token_budget: tokens of a dense batch, padding included.
        batch_cost: see `geep_triton.engine.batching.schedule`.
        costs: they decide whether waiting pays; None: survivors always wait.

    Attributes:
        most_held: the most tokens that waited at a time.
    """

    def __init__(
        self, runner: Runner[StatesT], token_budget: int, batch_cost: int = BATCH_COST, costs: LayerCosts | None = None
    ) -> None:
        self._runner = runner
        self.token_budget = token_budget
        self.batch_cost = batch_cost
        self.costs = costs
        self.most_held = 0
        self._pools: dict[tuple[int, int, int], deque[Batch[StatesT]]] = {}

    def hold(self, batch: Batch[StatesT]) -> bool:
        """Let survivors wait for others if that pays. Returns whether they wait now."""
        pool = self._pools.setdefault((batch.layer, batch.stop, batch.path), deque())
        if self.costs is not None:
            padded = len(batch) * max(other.states.longest for other in (batch, *pool))
            if not self.costs.regrouping_pays(batch.states.tokens, padded, batch.stop - batch.layer):
                return False
        pool.append(batch)
        self.most_held = max(self.most_held, sum(held.states.tokens for pool in self._pools.values() for held in pool))
        return True

    def next_batch(self, scheduled: Iterator[Batch[StatesT]], alone: bool) -> Batch[StatesT] | None:
        """What runs next: a full pool's batch, else a scheduled one, else the rest of a pool; None where nothing may.

        Args:
            scheduled: the batches that were not started yet.
            alone: whether no batch is running. Only then nobody can join those who are left in a pool.
        """
        batch = self.take_full()
        batch = next(scheduled, None) if batch is None else batch
        return self.take_rest() if batch is None and alone else batch

    def take_full(self) -> Batch[StatesT] | None:
        """A dense batch of the deepest layer whose pool fills one, or None. Deepest first: those are nearest to done."""
        for key in sorted(self._pools, reverse=True):
            if sum(batch.states.tokens for batch in self._pools[key]) >= self.token_budget:
                return self._take(self._pools[key])
        return None

    def take_rest(self) -> Batch[StatesT] | None:
        """A batch of the shallowest layer where samples wait, or None. Shallowest first: they may fill deeper pools yet."""
        key = min((key for key, pool in self._pools.items() if pool), default=None)
        return None if key is None else self._take(self._pools[key])

    def _take(self, pool: deque[Batch[StatesT]]) -> Batch[StatesT]:
        """The samples that have waited longest and make a dense batch together, at least one."""
        lengths = torch.cat([batch.states.lengths for batch in pool])
        count = dense_count(lengths.numpy(), self.token_budget, self.batch_cost)
        parts: list[Batch[StatesT]] = []
        while count:
            batch = pool.popleft()
            taken = min(count, len(batch))
            if taken < len(batch):
                # A copy of those who stay does not keep the memory of the whole batch.
                order = torch.arange(taken, len(batch), device=self._runner.model.device)
                pool.appendleft(batch.take(self._runner, slice(taken, None), order))
                batch = batch.take(self._runner, slice(taken), slice(taken))
            parts.append(batch)
            count -= taken
        return Batch.join(self._runner, parts)
