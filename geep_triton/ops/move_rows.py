"""Moving rows between a batch and a denser one."""

from __future__ import annotations

import torch

from geep_triton.checks import check_int, check_tensor
from geep_triton.ops.dispatch import implementation


def gather_rows(source: torch.Tensor, index: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """The rows `index` of `source`, one after another.

    Args:
        source: [N, ...], any dtype.
        index: [M] int64 in 0..N-1; not checked on a GPU, where the check would wait for the device. Each row at most once
            where gradients are wanted: the gradient is `scatter_rows`.
        backend: "torch", "triton", "auto" or None; see `geep_triton.backend.choose_backend`.

    Returns:
        [M, ...].

    Raises:
        ValueError, TypeError: for shapes, dtypes or an index out of range.
    """
    _check(source, "source", index)
    _check_range(index, source.shape[0])
    return _Gather.apply(source, index, backend)


def scatter_rows(rows: torch.Tensor, index: torch.Tensor, num_rows: int, *, backend: str | None = None) -> torch.Tensor:
    """Rows put to the places `index` of a tensor of zeros; the other direction of `gather_rows`.

    Args:
        rows: [M, ...], any dtype.
        index: [M] int64, distinct, in 0..num_rows-1; not checked on a GPU.
        num_rows: N of the result.
        backend: as for `gather_rows`.

    Returns:
        [N, ...].

    Raises:
        ValueError, TypeError: as for `gather_rows`, or where rows and index differ in number.
    """
    _check(rows, "rows", index)
    check_int("num_rows", num_rows, 0)
    if rows.shape[0] != index.numel():
        raise ValueError(f"rows and index must be of one length, got {rows.shape[0]} and {index.numel()}")
    _check_range(index, num_rows)
    return _Scatter.apply(rows, index, num_rows, backend)


def _check(value: torch.Tensor, name: str, index: torch.Tensor) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.ndim == 0:
        raise ValueError(f"{name} must have rows, got a scalar")
    check_tensor("index", index, 1, torch.int64)


def _check_range(index: torch.Tensor, num_rows: int) -> None:
    if index.device.type != "cpu" or not index.numel():
        return
    values = index.numpy()  # whose smallest and largest are found sooner
    if not 0 <= values.min() <= values.max() < num_rows:
        raise ValueError(f"index must be between 0 and {num_rows - 1}, got {values.min()}..{values.max()}")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, source, index, backend):
        ctx.save_for_backward(index)
        ctx.num_rows, ctx.backend = source.shape[0], backend
        return implementation("move_rows", source.device, backend).gather_rows(source, index)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return scatter_rows(gradient, index, ctx.num_rows, backend=ctx.backend), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, index, num_rows, backend):
        ctx.save_for_backward(index)
        ctx.backend = backend
        return implementation("move_rows", rows.device, backend).scatter_rows(rows, index, num_rows)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return gather_rows(gradient, index, backend=ctx.backend), None, None, None
