"""Skip gates of a batch: gate logits, then the soft gate, the decision, and the order and count of the rows that run
the layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.ops.kernels import launching
from geep_triton.ops.kernels.configs import choose
from geep_triton.ops.kernels.partition import partition_places

UNITS = 128  # hidden units of a row that are read at a time


@triton.jit(do_not_specialize=["num_rows"])
def gate_logits_kernel(
    states, weight, bias, logits, num_rows, hidden_size, ROWS: tl.constexpr, UNITS: tl.constexpr
):  # fmt: skip
    """Each program multiplies a few rows by the gate's weight."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < num_rows
    products = tl.zeros([ROWS, UNITS], tl.float32)
    first = 0
    while first < hidden_size:
        unit = first + tl.arange(0, UNITS)
        within = unit < hidden_size
        place = row[:, None] * hidden_size + unit[None, :]
        x = tl.load(states + place, mask=inside[:, None] & within[None, :], other=0.0).to(tl.float32)
        w = tl.load(weight + unit, mask=within, other=0.0).to(tl.float32)
        products += x * w[None, :]
        first += UNITS
    tl.store(logits + row, tl.sum(products, 1) + tl.load(bias).to(tl.float32), mask=inside)


@triton.jit
def soft_gate(logits, row, inside):
    """Sigmoid of the logits of a block of rows."""
    return 1.0 / (1.0 + tl.exp(-tl.load(logits + row, mask=inside, other=0.0).to(tl.float32)))


@triton.jit(do_not_specialize=["num_rows"])
def skip_gate_kernel(logits, soft, hard, order, count, num_rows, threshold, BLOCK: tl.constexpr):
    """One program counts the rows that run, then stores each row at its place. One is enough, because a batch is small.

    The second pass decides again. It must not read what other waves stored in the first pass, because a barrier does not order
    these stores on AMD.
    """
    total = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        inside = row < num_rows
        skips = soft_gate(logits, row, inside) >= threshold
        total += tl.sum(((skips == 0) & inside).to(tl.int32), 0)
        begin += BLOCK
    ahead = 0
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, BLOCK)
        inside = row < num_rows
        gate = soft_gate(logits, row, inside)
        skips = gate >= threshold
        place, ahead = partition_places(row, (skips == 0) & inside, ahead, total)
        tl.store(order + place, row.to(tl.int64), mask=inside)
        tl.store(soft + row, gate, mask=inside)
        tl.store(hard + row, skips.to(tl.float32), mask=inside)
        begin += BLOCK
    tl.store(count, total)


def skip_gate(
    states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.skip_gate.skip_gate`."""
    rows, device = states.shape[0], states.device
    logits = states.contiguous() if weight is None or bias is None else gate_logits(states, weight, bias)
    soft, hard = (torch.empty(rows, device=device) for _ in range(2))
    order = torch.empty(rows, dtype=torch.int64, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    config = choose("skip_gate", rows, device)
    launching.launch(
        skip_gate_kernel, (1,), logits, soft, hard, order, count, rows, float(threshold),
        BLOCK=config.block, num_warps=config.warps,
    )  # fmt: skip
    return soft, hard, order, count


def gate_logits(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """states [N, H] @ weight [H] + bias [1], each in its dtype -> [N] float32."""
    rows, hidden_size = states.shape
    logits = torch.empty(rows, device=states.device)
    config = choose("gate_logits", rows, states.device)
    launching.launch(
        gate_logits_kernel, (triton.cdiv(rows, config.block),),
        states.contiguous(), weight.contiguous(), bias, logits, rows, hidden_size,
        ROWS=config.block, UNITS=UNITS, num_warps=config.warps,
    )  # fmt: skip
    return logits
