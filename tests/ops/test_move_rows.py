"""Gathering and scattering rows: exact for any dtype and width, each the other's gradient."""

from __future__ import annotations

import pytest
import torch

from geep_triton.ops.move_rows import gather_rows, scatter_rows

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
    back = scatter_rows(gathered, target(index), 37, backend=target.backend).cpu()
    expected = torch.zeros_like(source)
    expected[index] = source[index]
    assert torch.equal(back, expected)


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
    for view in (source[:, 1:6], source.t()[:9], source.flatten()[1:106].view(21, 5)):
        assert torch.equal(gather_rows(view, index, backend=target.backend), view[index])
        rows = view[:3]
        expected = torch.zeros(9, *rows.shape[1:], device=rows.device).index_copy_(0, index, rows)
        assert torch.equal(scatter_rows(rows, index, 9, backend=target.backend), expected)


def test_each_is_the_others_gradient(target):
    source = target(torch.randn(7, 3)).requires_grad_()
    index = target([6, 0, 4])
    weights = target(torch.randn(3, 3))
    (gather_rows(source, index, backend=target.backend) * weights).sum().backward()
    assert torch.equal(source.grad, scatter_rows(weights, index, 7, backend=target.backend))
    rows = target(torch.randn(3, 3)).requires_grad_()
    weights = target(torch.randn(7, 3))
    (scatter_rows(rows, index, 7, backend=target.backend) * weights).sum().backward()
    assert torch.equal(rows.grad, weights[index])


def test_gradients_by_gradcheck(target):
    index = target([2, 0])
    source = target(torch.randn(3, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, index, backend=target.backend), source)
    rows = target(torch.randn(2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: scatter_rows(x, index, 3, backend=target.backend), rows)


def test_an_index_out_of_range_touches_nothing(target):
    """On the host it raises; a kernel must not read or write what is not its own, which the guard zones would show."""
    if target.backend == "torch":
        pytest.skip("PyTorch checks it itself")
    from geep_triton.kernels import move_rows

    rows = target(torch.randn(3, 4))
    moved = move_rows.scatter_rows(rows, target([0, 5, -1]), 2)
    assert torch.equal(moved, torch.stack([rows[0], torch.zeros_like(rows[0])]))
    taken = move_rows.gather_rows(rows, target([3, 1, -1]))
    assert torch.equal(taken, torch.stack([torch.zeros_like(rows[0]), rows[1], torch.zeros_like(rows[0])]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather_rows(torch.zeros(3, 2), torch.tensor([3])), r"index must be between 0 and 2, got 3\.\.3"),
        (lambda: gather_rows(torch.zeros(()), torch.tensor([0])), "source must have rows, got a scalar"),
        (lambda: scatter_rows(torch.zeros(2, 2), torch.tensor([0]), 3), "rows and index must be of one length, got 2 and 1"),
        (lambda: scatter_rows(torch.zeros(1, 2), torch.tensor([-1]), 3), r"index must be between 0 and 2, got -1\.\.-1"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
