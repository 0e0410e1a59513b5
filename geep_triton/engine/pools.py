"""Survivors of many batches wait after a layer until they fill a dense batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from geep_triton.batching import BATCH_COST, dense_count
from geep_triton.outputs import Tokens


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples that stand after the same layer.

    Attributes:
        rows: [B] int64 on the host, which samples.
        hidden: [B, S, H].
        attention_mask: [B, S] int64.
        prediction, streak: [B], what patience needs to know of the exit before; None at first.
    """

    rows: torch.Tensor
    hidden: torch.Tensor
    attention_mask: torch.Tensor
    prediction: torch.Tensor | None = None
    streak: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.rows.numel()

    @property
    def tokens(self) -> int:
        """Tokens held, padding included."""
        return self.attention_mask.numel()

    def part(self, begin: int, end: int, copy: bool = False) -> Batch:
        """Samples begin..end-1; a copy does not keep the memory of the whole batch."""
        values = (self.rows, self.hidden, self.attention_mask, self.prediction, self.streak)
        parts = (None if value is None else value[begin:end] for value in values)
        return Batch(*(part.clone() if copy and part is not None else part for part in parts))

    @classmethod
    def concatenate(cls, parts: list[Batch], longest: int) -> Batch:
        """All samples, padded or cut to `longest` tokens, which none of them exceeds."""
        if len(parts) == 1 and parts[0].hidden.shape[1] == longest:
            return parts[0]
        first, total = parts[0], sum(map(len, parts))
        hidden = first.hidden.new_zeros(total, longest, first.hidden.shape[2])
        mask = first.attention_mask.new_zeros(total, longest)
        begin = 0
        for part in parts:
            end, width = begin + len(part), min(longest, part.hidden.shape[1])
            hidden[begin:end, :width] = part.hidden[:, :width]
            mask[begin:end, :width] = part.attention_mask[:, :width]
            begin = end
        known = first.streak is not None
        return cls(
            torch.cat([part.rows for part in parts]),
            hidden,
            mask,
            torch.cat([part.prediction for part in parts]) if known else None,
            torch.cat([part.streak for part in parts]) if known else None,
        )


class Pools:
    """One first-in, first-out pool per layer and group; a pool that fills a batch is emptied before more is put in.

    So each holds less than a batch of `token_budget` tokens before a batch is put in, and less than two after: memory is
    bounded by twice the budget (or the longest sample, where that is more) for every layer and group of samples that wait.

    Args:
        tokens: the window's samples.
        token_budget: tokens of a dense batch, padding included.
        groups: [N] int64, which samples may run together; None: all.
        batch_cost: see `geep_triton.batching.schedule`.

    Attributes:
        most_held: most tokens that waited at a time.
    """

    def __init__(
        self, tokens: Tokens, token_budget: int, groups: torch.Tensor | None = None, batch_cost: int = BATCH_COST
    ) -> None:
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
        self.most_held = max(self.most_held, sum(batch.tokens for pool in self._pools.values() for batch in pool))

    def padded(self, layer: int, batch: Batch) -> int:
        """Tokens of `batch` once it is padded to the longest sample that waits after `layer`."""
        waiting = self._pools.get(self._key(layer, batch), ())
        return len(batch) * max([batch.hidden.shape[1], *(other.hidden.shape[1] for other in waiting)])

    def take_full(self) -> tuple[int, Batch] | None:
        """A dense batch of the deepest layer whose pool fills one, or None. Deepest first: those are nearest to done."""
        for key in sorted(self._pools, reverse=True):
            if sum(batch.tokens for batch in self._pools[key]) >= self.token_budget:
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
        longest, parts = int(lengths[:count].max()), []
        while count:
            batch = pool.popleft()
            taken = min(count, len(batch))
            parts.append(batch.part(0, taken))
            if taken < len(batch):
                pool.appendleft(batch.part(taken, len(batch), copy=True))
            count -= taken
        return Batch.concatenate(parts, longest)
