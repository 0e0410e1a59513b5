"""Token ids of samples without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, chain, pairwise

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of N samples without padding.

    Attributes:
        ids: [T] int64, the ids of all samples in sequence, including special tokens.
        offsets: [N + 1] int64; sample i is ids[offsets[i]:offsets[i + 1]].
        type_ids: [T] int64 segment ids. None: all are 0.
        cut: [N] bool on the host, whether a sample was longer and was cut. None: none was.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    type_ids: torch.Tensor | None = None
    cut: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.offsets.numel() - 1

    @cached_property
    def lengths(self) -> torch.Tensor:
        """[N] int64, number of tokens per sample."""
        return self.offsets.diff()

    @property
    def truncated(self) -> int:
        """Number of samples that were cut."""
        return 0 if self.cut is None else int(self.cut.sum())

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None = None) -> Tokens:
        """Make tokens from lists.

        Args:
            ids: one list of token ids per sample.
            type_ids: one list of segment ids per sample. None: all are 0.
        """
        lengths = torch.tensor([len(row) for row in ids], dtype=torch.int64)
        offsets = torch.zeros(len(ids) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        return cls(_flatten(ids), offsets, None if type_ids is None else _flatten(type_ids))

    @classmethod
    def concatenate(cls, parts: Sequence[Tokens]) -> Tokens:
        """All samples of `parts`, in order. They have segment ids if any part has them."""
        type_ids, cut = None, None
        if any(part.type_ids is not None for part in parts):
            type_ids = torch.cat([torch.zeros_like(p.ids) if p.type_ids is None else p.type_ids for p in parts])
        if any(part.cut is not None for part in parts):
            cut = torch.cat([torch.zeros(len(p), dtype=torch.bool) if p.cut is None else p.cut for p in parts])
        lengths = torch.cat([part.lengths for part in parts])
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return cls(torch.cat([part.ids for part in parts]), offsets, type_ids, cut)

    def hashes(self) -> torch.Tensor:
        """[N] int64, a hash of each sample's ids. It is the same in every process."""
        ids, bounds = memoryview(self.ids.cpu().numpy().tobytes()), (8 * self.offsets).tolist()
        found = [blake2b(ids[start:end], digest_size=8).digest() for start, end in pairwise(bounds)]
        return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.int64) if found else torch.empty(0, dtype=torch.int64)

    def select(self, rows: torch.Tensor) -> Tokens:
        """The samples `rows` [K] int64, in that order."""
        lengths = self.lengths[rows]
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        within = torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], lengths)
        positions = torch.repeat_interleave(self.offsets[rows], lengths) + within
        type_ids = None if self.type_ids is None else self.type_ids[positions]
        return Tokens(self.ids[positions], offsets, type_ids, None if self.cut is None else self.cut[rows])

    def split(self, sizes: Sequence[int]) -> list[Tokens]:
        """The samples in parts of these sizes, which sum to N. Parts share memory with the whole."""
        bounds = [0, *accumulate(sizes)]
        if bounds[-1] != len(self):
            raise ValueError(f"sizes must sum to {len(self)}, got {bounds[-1]}")
        starts = self.offsets[bounds].tolist()
        parts = []
        for (first, last), (begin, end) in zip(pairwise(bounds), pairwise(starts), strict=True):
            type_ids = None if self.type_ids is None else self.type_ids[begin:end]
            cut = None if self.cut is None else self.cut[first:last]
            parts.append(Tokens(self.ids[begin:end], self.offsets[first : last + 1] - begin, type_ids, cut))
        return parts

    def to(self, device: torch.device) -> Tokens:
        """The same samples on a device. See `to_device`."""
        type_ids = None if self.type_ids is None else to_device(self.type_ids, device)
        return Tokens(to_device(self.ids, device), to_device(self.offsets, device), type_ids, self.cut)

    def padded(
        self, rows: torch.Tensor, pad_id: int, longest: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The samples `rows` as a padded batch.

        Args:
            rows: [B] int64, on the device of the tokens.
            pad_id: id of the padding token.
            longest: S, the length of the longest of them. None: it is read from the tensors, and the host waits for them.

        Returns:
            input_ids, attention_mask and token_type_ids (or None), each [B, S] int64.
        """
        starts, lengths = self.offsets[rows], self.lengths[rows]
        columns = torch.arange(int(lengths.max()) if longest is None else longest, device=rows.device)
        real = columns < lengths[:, None]
        positions = torch.where(real, starts[:, None] + columns, 0)
        input_ids = torch.where(real, self.ids[positions], pad_id)
        type_ids = None if self.type_ids is None else torch.where(real, self.type_ids[positions], 0)
        return input_ids, real.long(), type_ids


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor from the host to `device`. The host does not wait for a copy to a GPU."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _flatten(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.from_numpy(np.fromiter(chain.from_iterable(rows), np.int64))
