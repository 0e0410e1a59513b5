"""The exit table's ops: count exits per key, find keys, predict exits from what is found."""

from __future__ import annotations

import torch

from geep_triton.checks import check_choice, check_int, check_tensor
from geep_triton.reference import hash_table as reference

REDUCTIONS = ("mean", "naive_bayes")


def insert_add(keys: torch.Tensor, exits: torch.Tensor, num_exits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Count how often each key came with each exit.

    Args:
        keys: [M] int64, duplicates welcome.
        exits: [M] int64, index of the exit (0..num_exits-1).
        num_exits: E.

    Returns:
        table_keys [S] int64, distinct and ascending; counts [S, E] int64, exact.

    Raises:
        ValueError: lengths differ, or an exit out of range.
    """
    check_tensor("keys", keys, 1, torch.int64)
    check_tensor("exits", exits, 1, torch.int64)
    check_int("num_exits", num_exits, 1)
    if keys.shape != exits.shape:
        raise ValueError(f"keys and exits must be of one length, got {keys.numel()} and {exits.numel()}")
    if exits.numel() and (int(exits.min()) < 0 or int(exits.max()) >= num_exits):
        raise ValueError(f"exits must be between 0 and {num_exits - 1}, got {int(exits.min())}..{int(exits.max())}")
    return reference.insert_add(keys, exits, num_exits)


def lookup(table_keys: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Row of each key in the table.

    Args:
        table_keys: [S] int64, distinct and ascending.
        keys: [M] int64.

    Returns:
        rows [M] int64; S for a key that is not there (the prior's row).
    """
    check_tensor("table_keys", table_keys, 1, torch.int64)
    check_tensor("keys", keys, 1, torch.int64)
    return reference.lookup(table_keys, keys)


def predict_exits(
    rows: torch.Tensor, samples: torch.Tensor, num_samples: int, scores: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Distribution over exits of each sample, P(e|x), from the rows of its keys (GEEP's prediction step).

    Args:
        rows: [M] int64 into `scores`, as `lookup` returns.
        samples: [M] int64, whose each row is.
        num_samples: N.
        scores: [S + 1, E] float32, P(e|key) per row; the last row is the prior.
        reduction: "mean" over the keys, or "naive_bayes": P(e|x) ~ prior(e) * prod P(e|key) / prior(e).

    Returns:
        [N, E] float32, rows sum to 1; a sample without keys gets the prior.
    """
    check_tensor("rows", rows, 1, torch.int64)
    check_tensor("samples", samples, 1, torch.int64)
    check_tensor("scores", scores, 2)
    check_choice("reduction", reduction, REDUCTIONS)
    return reference.predict_exits(rows, samples, num_samples, scores, log_space=reduction == "naive_bayes")
