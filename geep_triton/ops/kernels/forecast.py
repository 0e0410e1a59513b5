"""From the answer of one exit, how likely this exit and each deeper one give the last exit's answer, in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose

COLUMNS = 8  # logits of a row, or exits, that are handled at a time


@triton.jit
def load_logits(logits, row, inside, first, classes, COLUMNS: tl.constexpr):
    """Some columns of a block of rows in float32, 0 where they are not finite; and which columns are there, and are finite."""
    column = first + tl.arange(0, COLUMNS)
    given = inside[:, None] & (column < classes)[None, :]
    x = tl.load(logits + row[:, None] * classes + column[None, :], mask=given, other=0.0).to(tl.float32)
    finite = (x > -float("inf")) & (x < float("inf"))  # False for NaN
    return tl.where(finite, x, 0.0), given, finite


@triton.jit
def add_inputs(hidden, x, weight, first, begin, end, units, unit, COLUMNS: tl.constexpr):
    """Hidden units [ROWS, UNITS] plus the products of inputs [ROWS, COLUMNS] with rows `begin` + `first` ... of the weight."""
    column = first + tl.arange(0, COLUMNS)
    there = (begin + column < end)[:, None] & (unit < units)[None, :]
    v = tl.load(weight + (begin + column)[:, None] * units + unit[None, :], mask=there, other=0.0)
    return hidden + tl.sum(x[:, :, None] * v[None, :, :], 1)


@triton.jit(do_not_specialize=["num_rows"])
def forecast_kernel(
    logits, hidden_weight, hidden_bias, weight, bias, agreement, num_rows, classes, units, exits,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Each program handles a few rows. Their hidden units stay in registers, and their logits are read up to three times."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    unit = tl.arange(0, UNITS)
    bad = tl.zeros([ROWS], tl.int32)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    first = 0
    while first < classes:
        x, given, finite = load_logits(logits, row, inside, first, classes, COLUMNS)
        bad += tl.sum((finite == 0).to(tl.int32), 1)
        highest = tl.maximum(highest, tl.max(tl.where(given, x, -float("inf")), 1))
        first += COLUMNS
    highest = tl.where(inside, highest, 0.0)
    total = tl.zeros([ROWS], tl.float32)
    first = 0
    while first < classes:
        x, given, finite = load_logits(logits, row, inside, first, classes, COLUMNS)
        total += tl.sum(tl.where(given, tl.exp(x - highest[:, None]), 0.0), 1)
        first += COLUMNS
    total = tl.where(inside, total, 1.0)
    hidden = tl.zeros([ROWS, UNITS], tl.float32)
    first = 0
    while first < classes:
        x, given, finite = load_logits(logits, row, inside, first, classes, COLUMNS)
        p = tl.where(given, tl.exp(x - highest[:, None]) / total[:, None], 0.0)
        hidden = add_inputs(hidden, x, hidden_weight, first, 0, classes, units, unit, COLUMNS)
        hidden = add_inputs(hidden, p, hidden_weight, first, classes, 2 * classes, units, unit, COLUMNS)
        first += COLUMNS
    hidden = tl.maximum(hidden + tl.load(hidden_bias + unit, mask=unit < units, other=0.0)[None, :], 0.0)
    known = bad == 0
    first = 0
    while first < exits:
        column = first + tl.arange(0, COLUMNS)
        there = column < exits
        w = tl.load(weight + unit[None, :] * exits + column[:, None], mask=there[:, None] & (unit < units)[None, :], other=0.0)
        score = tl.sum(hidden[:, None, :] * w[None, :, :], 2) + tl.load(bias + column, mask=there, other=0.0)[None, :]
        found = tl.where(known[:, None], 1.0 / (1.0 + tl.exp(-score)), 0.0)
        tl.store(agreement + row[:, None] * exits + column[None, :], found, mask=inside[:, None] & there[None, :])
        first += COLUMNS


def forecast(
    logits: torch.Tensor,
    hidden_weight: torch.Tensor,
    hidden_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """See `geep_triton.ops.forecast.forecast`."""
    (rows, classes), (units, exits) = logits.shape, weight.shape
    agreement = torch.empty(rows, exits, device=logits.device)
    config = choose("forecast", rows, logits.device)
    launching.launch(
        forecast_kernel, (triton.cdiv(rows, config.block),),
        logits.contiguous(), hidden_weight.contiguous(), hidden_bias.contiguous(), weight.contiguous(), bias.contiguous(),
        agreement, rows, classes, units, exits,
        ROWS=config.block, COLUMNS=COLUMNS, UNITS=triton.next_power_of_2(units),
        num_warps=config.warps,
    )  # fmt: skip
    return agreement
