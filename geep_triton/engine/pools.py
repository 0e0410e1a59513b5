"""Survivors of many batches wait after a layer until they fill a dense batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch

from geep_triton.engine.batching import BATCH_COST, dense_count
from geep_triton.runners.base import Runner, States
from geep_triton.tokens.ragged import Tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that stand after the same layer.

    Attributes:
        rows: [B] int64 on the host, which samples of the window.
        states: theirs, which only the runner looks into.
        prediction, streak: [B], what patience needs to know of the exit before; None at first.
    """

    rows: torch.Tensor
    states: States
    prediction: torch.Tensor | None = None
    streak: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.rows.numel()

    def take(self, runner: Runner, chosen: torch.Tensor | slice, order: torch.Tensor | slice) -> Batch:
        """Some of the samples: `chosen` says which on the host, `order` [K] int64 on the device; or the same slice twice."""
        states = runner.take(self.states, order, self.states.lengths[chosen])
        memory = (None if value is None else value[order] for value in (self.prediction, self.streak))
        return Batch(self.rows[chosen], states, *memory)

    @classmethod
    def join(cls, runner: Runner, parts: list[Batch]) -> Batch:
        """All samples of several batches."""
        if len(parts) == 1:
            return replace(parts[0], states=runner.join([parts[0].states]))
        known = parts[0].streak is not None
        return cls(
            torch.cat([part.rows for part in parts]),
            runner.join([part.states for part in parts]),
            torch.cat([part.prediction for part in parts]) if known else None,
            torch.cat([part.streak for part in parts]) if known else None,
        )


class Pools:
    """One first-in, first-out pool per layer and group; a pool that fills a batch is emptied before more is put in.

    So each holds less than a batch of `token_budget` tokens before a batch is put in, and less than two after: memory is
    bounded by twice the budget (or the longest sample, where that is more) for every layer and group of samples that wait.

    Args:
        runner: of the samples' layers.
        tokens: the window's samples.
        token_budget: tokens of a dense batch, padding included.
        groups: [N] int64, which samples may run together; None: all.
        batch_cost: see `geep_triton.engine.batching.schedule`.

    Attributes:
        most_held: most tokens that waited at a time.
    """

    def __init__(
        self,
        runner: Runner,
        tokens: Tokens,
        token_budget: int,
        groups: torch.Tensor | None = None,
        batch_cost: int = BATCH_COST,
    ) -> None:
        self._runner = runner
        self.token_budget = token_budget
        self.batch_cost = batch_cost
        self.most_held = 0
        self._lengths = tokens.lengths
        self._groups = groups
        self._pools: dict[tuple[int, int], deque[Batch]] = {}

    def _key(self, layer: int, batch: Batch) -> tuple[int, int]:
        return layer, 0 if self._groups is None else int(self._groups[batch.rows[0]])

    def put(self, layer: int, batch: Batch) -> None:
        """Let a batch wait after `layer`."""
        self._pools.setdefault(self._key(layer, batch), deque()).append(batch)
        self.most_held = max(self.most_held, sum(batch.states.tokens for pool in self._pools.values() for batch in pool))

    def padded(self, layer: int, batch: Batch) -> int:
        """Tokens of `batch` once it is padded to the longest sample that waits after `layer`."""
        waiting = self._pools.get(self._key(layer, batch), ())
        return len(batch) * max([batch.states.longest, *(other.states.longest for other in waiting)])

    def take_full(self) -> tuple[int, Batch] | None:
        """A dense batch of the deepest layer whose pool fills one, or None. Deepest first: those are nearest to done."""
        for key in sorted(self._pools, reverse=True):
            if sum(batch.states.tokens for batch in self._pools[key]) >= self.token_budget:
                return key[0], self._take(key)
        return None

    def take_rest(self) -> tuple[int, Batch] | None:
        """A batch of the shallowest layer where samples wait, or None. Shallowest first: they may fill deeper pools yet."""
        key = min((key for key, pool in self._pools.items() if pool), default=None)
        return None if key is None else (key[0], self._take(key))

    def _take(self, key: tuple[int, int]) -> Batch:
        """The samples that have waited longest and make a dense batch together, at least one."""
        pool = self._pools[key]
        lengths = self._lengths[torch.cat([batch.rows for batch in pool])]
        count = dense_count(lengths.numpy(), self.token_budget, self.batch_cost)
        parts: list[Batch] = []
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
