"""Which rows go first: a stable partition by a flag, and a sort by (exit, length)."""

from __future__ import annotations

import torch

from geep_triton.checks import check_int, check_tensor
from geep_triton.ops.dispatch import implementation

MAX_KEYS = 128
# The kernel compares each pair of rows: beyond a window's usual size a sort does better.
MAX_ROWS = 8192


def partition(flags: torch.Tensor, *, backend: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose flag is set before the others, both in their order.

    Args:
        flags: [N] bool.
        backend: "torch", "triton", "auto" or None; see `geep_triton.backend.choose_backend`.

    Returns:
        order [N] int64, row indices; count [1] int32, how many flags are set. In Triton neither waits for the device.
    """
    check_tensor("flags", flags, 1, torch.bool)
    return implementation("partition", flags.device, backend).partition(flags)


def counting_sort(
    keys: torch.Tensor, lengths: torch.Tensor, num_keys: int, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows by (key, length), both descending; equal ones in their order.

    Args:
        keys: [N] int64 in 0..num_keys-1, an exit each; not checked on a GPU, where the check would wait for the device.
        lengths: [N] int64, not negative.
        num_keys: at most 128.
        backend: as for `partition`.

    Returns:
        order [N] int64, row indices; survivors [num_keys] int32, how many rows have at least that key: sorted like this, the
        rows that are still running at exit k are the first survivors[k].

    Raises:
        ValueError, TypeError: for shapes, dtypes, keys out of range or too many keys.
    """
    check_tensor("keys", keys, 1, torch.int64)
    check_tensor("lengths", lengths, 1, torch.int64)
    check_int("num_keys", num_keys, 1, MAX_KEYS)
    if keys.shape != lengths.shape:
        raise ValueError(f"keys and lengths must be of one length, got {keys.numel()} and {lengths.numel()}")
    if keys.device.type == "cpu" and keys.numel() and not 0 <= int(keys.min()) <= int(keys.max()) < num_keys:
        raise ValueError(f"keys must be between 0 and {num_keys - 1}, got {int(keys.min())}..{int(keys.max())}")
    backend = "torch" if keys.numel() > MAX_ROWS else backend
    return implementation("partition", keys.device, backend).counting_sort(keys, lengths, num_keys)
