"""Dense batches from exits and lengths, by a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from geep_triton.checks import check_int, check_tensor

BATCH_COST = 64
TOKEN_BUDGETS = {"cpu": 1024, "cuda": 65536}
# A CPU runs small batches as well as large ones; a GPU needs thousands of tokens to hide a layer's launches.
BATCH_COSTS = {"cpu": BATCH_COST, "cuda": 4096}
IN_FLIGHT = 3  # batches on a GPU


def joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """What all parts have as one tensor; None where they have none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


@dataclass(frozen=True, eq=False)
class Batches:
    """Which samples run together, and how deep. Iterating gives the rows [B] int64 and the exit layer of each batch.

    Attributes:
        order: [N] int64, sample indices in running order: exits descending, lengths descending within an exit.
        bounds: batch b holds order[bounds[b]:bounds[b + 1]].
        exits: the exit layer of each batch.
        tokens: how many tokens the batches hold, padding included.
        padding: the share of these tokens that is padding, 0..1.
    """

    order: torch.Tensor
    bounds: tuple[int, ...]
    exits: tuple[int, ...]
    tokens: int
    padding: float

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        for begin, end, layer in zip(self.bounds[:-1], self.bounds[1:], self.exits, strict=True):
            yield self.order[begin:end], layer


def schedule(
    exits: torch.Tensor,
    lengths: torch.Tensor,
    token_budget: int,
    groups: torch.Tensor | None = None,
    batch_cost: int = BATCH_COST,
) -> Batches:
    """Sort samples by (exit, group, length), exits and lengths descending, and cut batches of one exit and group.

    Args:
        exits: [N] int64, the layer that each sample runs to.
        lengths: [N] int64, tokens per sample, at least 1.
        token_budget: the most tokens that a batch may have, padding included; a longer sample gets a batch of its own.
        groups: [N] int64; only samples of one group run together, such as those of one path. None: all may.
        batch_cost: the cost of a batch besides its tokens, in tokens: its launches, and that a small batch fills the machine
            less. Where lengths differ, a batch ends earlier if that saves more padding.

    Raises:
        ValueError: there are no samples; lengths, budget or batch cost are below 1; or shapes differ.
    """
    check_tensor("exits", exits, 1, torch.int64)
    check_tensor("lengths", lengths, 1, torch.int64)
    check_int("token_budget", token_budget, 1)
    check_int("batch_cost", batch_cost, 1)
    if exits.shape != lengths.shape:
        raise ValueError(f"exits and lengths must be of one length, got {exits.numel()} and {lengths.numel()}")
    if exits.numel() == 0:
        raise ValueError("exits: expected at least one sample")
    if int(lengths.min()) < 1:
        raise ValueError(f"lengths must be at least 1, got {int(lengths.min())}")

    keys = exits
    if groups is not None:
        check_tensor("groups", groups, 1, torch.int64)
        if groups.shape != exits.shape:
            raise ValueError(f"exits and groups must be of one length, got {exits.numel()} and {groups.numel()}")
        keys = torch.unique(torch.stack([exits, -groups]), dim=1, return_inverse=True)[1]
    # Key and length become one number, so that one stable sort will do.
    combined = keys * (int(lengths.max()) + 1) + lengths
    order = torch.from_numpy(np.argsort(-combined.numpy(), kind="stable"))
    sorted_keys, sorted_exits, sorted_lengths = (values[order].numpy() for values in (keys, exits, lengths))

    bounds, batch_exits, padded = [0], [], 0
    while bounds[-1] < len(sorted_keys):
        begin = bounds[-1]
        longest = int(sorted_lengths[begin])
        same_key = int(np.searchsorted(-sorted_keys, -sorted_keys[begin], side="right"))
        end = min(begin + max(1, token_budget // longest), same_key)
        count = dense_count(sorted_lengths[begin:end], token_budget, batch_cost)
        bounds.append(begin + count)
        batch_exits.append(int(sorted_exits[begin]))
        padded += longest * count
    return Batches(order, tuple(bounds), tuple(batch_exits), padded, 1.0 - int(sorted_lengths.sum()) / padded)


def dense_count(lengths: np.ndarray, token_budget: int, batch_cost: int = BATCH_COST) -> int:
    """How many of the first samples make the best batch, which is the one with most real tokens for its cost.

    Where lengths differ, a batch that ends earlier pads less.

    Args:
        lengths: [N] tokens per sample, N at least 1.
        token_budget: the most tokens that a batch may have, padding included; the first sample alone may exceed it.
        batch_cost: the cost of a batch besides its tokens, in tokens.
    """
    counts = np.arange(1, len(lengths) + 1)
    padded = counts * np.maximum.accumulate(lengths)
    fits = max(1, int((padded <= token_budget).sum()))
    cost = padded[:fits] + batch_cost
    return int(counts[np.argmax(lengths[:fits].cumsum() / cost)])
