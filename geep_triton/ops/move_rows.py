"""Moving rows of a batch into a denser one."""

from __future__ import annotations

import torch

from geep_triton.checks import check_tensor
from geep_triton.ops.dispatch import implementation
from geep_triton.reference import move_rows as reference


def gather_rows(source: torch.Tensor, index: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """The rows `index` of `source`, one after another.

    Args:
        source: [N, ...], any dtype. Rows that are whole but lie apart, as in `hidden[:, :longest]`, are not copied first.
        index: [M] int64 in 0..N-1; not checked on a GPU, where the check would wait for the device.
        backend: "torch", "triton", "auto" or None; see `geep_triton.backend.choose_backend`. Where the source's gradient is
            wanted PyTorch runs in any case.

    Returns:
        [M, ...], contiguous.

    Raises:
        ValueError, TypeError: for shapes, dtypes or an index out of range.
    """
    if not isinstance(source, torch.Tensor):
        raise TypeError(f"source must be a torch.Tensor, got {type(source).__name__}")
    if source.ndim == 0:
        raise ValueError("source must have rows, got a scalar")
    check_tensor("index", index, 1, torch.int64)
    if index.device.type == "cpu" and index.numel():
        values = index.numpy()  # whose smallest and largest are found sooner
        if not 0 <= values.min() <= values.max() < source.shape[0]:
            raise ValueError(f"index must be between 0 and {source.shape[0] - 1}, got {values.min()}..{values.max()}")
    if source.requires_grad and torch.is_grad_enabled():
        return reference.gather_rows(source, index)
    return implementation("move_rows", source.device, backend).gather_rows(source, index)
