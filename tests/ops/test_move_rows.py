"""Gathering rows: exact for any dtype, width and layout."""

from __future__ import annotations

import pytest
import torch

from geep_triton.ops.move_rows import gather_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.bool]
SHAPES = [(0,), (1,), (3,), (5, 7), (2, 64), (1030,)]


def rows_of(count, shape, dtype):
    bits = torch.randint(0, 2 if dtype is torch.bool else 100, (count, *shape))
    return bits.to(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves_are_exact(target, dtype, shape):
    source, index = rows_of(37, shape, dtype), torch.randperm(37)[:11]
    gathered = gather_rows(target(source), target(index), backend=target.backend)
    assert torch.equal(gathered.cpu(), source[index])
    assert gathered.dtype == dtype


def test_nan_and_infinity_keep_their_bits(target):
    source = torch.tensor([[float("nan"), float("inf")], [-0.0, 1e-42]])
    moved = gather_rows(target(source), target([1, 0]), backend=target.backend).cpu()
    assert torch.equal(moved.view(torch.int32), source[[1, 0]].view(torch.int32))


@pytest.mark.parametrize("index", [[], [4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 2, 2]])
def test_none_one_all_and_repeated(target, index):
    source = torch.randn(5, 6)
    moved = gather_rows(target(source), target(index, torch.int64), backend=target.backend).cpu()
    assert torch.equal(moved, source[torch.tensor(index, dtype=torch.int64)])


def test_views_that_are_not_contiguous_or_aligned(target):
    source = target(torch.randn(9, 12))
    index = target([8, 0, 3])
    for view in (source.t()[:9], source.flatten()[1:106].view(21, 5), source[:, None, ::2], source[:, :1].expand(9, 5)):
        assert torch.equal(gather_rows(view, index, backend=target.backend), view[index])
    one = target(torch.randn(1, 5)).expand(1, 5)[:, 1:4]
    assert torch.equal(gather_rows(one, index[1:2], backend=target.backend), one)


@pytest.mark.parametrize("tail", [(), (3,), (8,)], ids=str)
@pytest.mark.parametrize(("length", "longest"), [(9, 8), (8, 7), (8, 1), (7, 4), (64, 32)])
@pytest.mark.parametrize("begin", [0, 1])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.bfloat16], ids=str)
def test_rows_that_lie_apart_are_not_copied_first(target, dtype, begin, length, longest, tail, monkeypatch):
    """As those of a batch cut to fewer tokens, which may begin anywhere; the guard zones hold the gaps too."""
    source, index = rows_of(13, (length, *tail), dtype), [12, 0, 5, 5]
    view = target(source)[begin:, begin:longest]
    index = target([row - begin for row in index if row >= begin])
    copied = []
    contiguous = torch.Tensor.contiguous
    monkeypatch.setattr(
        torch.Tensor, "contiguous", lambda x: (copied.append(x.shape) if x.ndim > 1 else None, contiguous(x))[1]
    )
    moved = gather_rows(view, index, backend=target.backend)
    assert copied == []
    assert torch.equal(moved, view[index])
    assert moved.is_contiguous()


def test_gradients_are_pytorchs_and_repeated_rows_add_up(target):
    source = target(torch.randn(7, 3)).requires_grad_()
    index = target([6, 0, 4, 6])
    weights = target(torch.randn(4, 3))
    (gather_rows(source, index, backend=target.backend) * weights).sum().backward()
    assert torch.equal(source.grad, torch.zeros_like(source).index_add(0, index, weights))
    with torch.no_grad():
        assert torch.equal(gather_rows(source, index, backend=target.backend), source[index])


def test_an_index_out_of_range_touches_nothing(target):
    """On the host it raises; a kernel must not read what is not its own, which the guard zones would show."""
    if target.backend == "torch":
        pytest.skip("PyTorch checks it itself")
    from geep_triton.kernels import move_rows

    rows = target(torch.randn(3, 4))
    taken = move_rows.gather_rows(rows, target([3, 1, -1]))
    assert torch.equal(taken, torch.stack([torch.zeros_like(rows[0]), rows[1], torch.zeros_like(rows[0])]))


@pytest.mark.parametrize(
    ("source", "index", "message"),
    [
        (torch.zeros(3, 2), [3], r"index must be between 0 and 2, got 3\.\.3"),
        (torch.zeros(3, 2), [-1], r"index must be between 0 and 2, got -1\.\.-1"),
        (torch.zeros(()), [0], "source must have rows, got a scalar"),
    ],
)
def test_refusals(source, index, message):
    with pytest.raises(ValueError, match=message):
        gather_rows(source, torch.tensor(index))
