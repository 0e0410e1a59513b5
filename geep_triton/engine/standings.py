"""Where the candidates of some queries stand: their scores so far, and who is left."""

from __future__ import annotations

from collections.abc import Generator

import torch

from geep_triton.engine.flight import Copying
from geep_triton.ops.outranked import outranked
from geep_triton.tokens.ragged import to_device


class Standings:
    """The scores of N candidates of Q queries, and where they left.

    Args:
        offsets: [Q + 1] int64 on the host, where each query's candidates begin.
        last: the last layer.
        device: on which the scores are.

    Attributes:
        logits: [N] float32 on the device.
        exit_layers: [N] int64 on the host; the last layer for those who are left.
    """

    def __init__(self, offsets: torch.Tensor, last: int, device: torch.device) -> None:
        candidates = int(offsets[-1])
        self.logits = torch.zeros(candidates, device=device)
        self.exit_layers = torch.full((candidates,), last)
        self._last, self._device = last, device
        self._queries = len(offsets) - 1
        self._query = torch.repeat_interleave(offsets.diff())
        self._invalid: list[torch.Tensor] = []

    @property
    def left(self) -> torch.Tensor:
        """[N] bool on the host, who is left."""
        return self.exit_layers == self._last

    def put(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Take the logits [B, 1] of the candidates `rows` [B] int64 on the host."""
        self.logits.index_copy_(0, to_device(rows, self._device), logits[:, 0].float())

    def compare(self, layer: int, top_k: int, margin: float) -> Generator[Copying, None, None]:
        """Let those leave at `layer` who are outranked among those of their query who are left. This waits for a device."""
        rows = self.left.nonzero()[:, 0]
        sizes = torch.bincount(self._query[rows], minlength=self._queries)
        offsets = to_device(torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]), self._device)
        found = outranked(self.logits.index_select(0, to_device(rows, self._device)), offsets, top_k, margin)
        self._invalid.append(found.counts[1:])
        copying = Copying(found.leaves)
        yield copying
        self.exit_layers[rows[copying.get()]] = layer

    def final(self) -> Generator[Copying, None, tuple[torch.Tensor, list[int]]]:
        """The logits [N] on the host, and how many were not finite each time that candidates were compared."""
        copying = Copying(torch.cat([self.logits, *(count.float() for count in self._invalid)]))
        yield copying
        values, number = copying.get(), len(self.exit_layers)
        return values[:number], values[number:].int().tolist()
