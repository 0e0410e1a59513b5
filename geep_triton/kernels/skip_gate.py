"""Skip gates of a batch in one launch: soft gate, decision, order and count of the rows that run the layer."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from geep_triton.kernels import launching
from geep_triton.kernels.configs import choose
from geep_triton.kernels.partition import write_order


@triton.jit(do_not_specialize=["num_rows"])
def skip_gate_kernel(
    states, weight, bias, soft, skips, active, order, count, num_rows, hidden_size, threshold,
    LINEAR: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One program: gates block by block, then the order; a batch is small."""
    begin = 0
    while begin < num_rows:
        row = begin + tl.arange(0, ROWS)
        inside = row < num_rows
        if LINEAR:
            gate = tl.zeros([ROWS], tl.float32) + tl.load(bias).to(tl.float32)
            first = 0
            while first < hidden_size:
                unit = first + tl.arange(0, UNITS)
                within = unit < hidden_size
                place = row.to(tl.int64)[:, None] * hidden_size + unit[None, :]
                x = tl.load(states + place, mask=inside[:, None] & within[None, :], other=0.0).to(tl.float32)
                w = tl.load(weight + unit, mask=within, other=0.0).to(tl.float32)
                gate += tl.sum(x * w[None, :], 1)
                first += UNITS
        else:
            gate = tl.load(states + row, mask=inside, other=0.0).to(tl.float32)
        open_share = 1.0 / (1.0 + tl.exp(-gate))
        skip = open_share >= threshold
        tl.store(soft + row, open_share, mask=inside)
        tl.store(skips + row, skip.to(tl.float32), mask=inside)
        tl.store(active + row, (skip == 0).to(tl.uint8), mask=inside)
        begin += ROWS
    # What one thread stored another is about to read.
    tl.debug_barrier()
    write_order(active, order, count, num_rows, BLOCK)


# Of pooled states that one program reads; more, or hidden sizes that no BERT has, are a matrix product before the launch.
MOST_STATES = 1 << 18


def skip_gate(
    states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.skip_gate.skip_gate`."""
    rows, device = states.shape[0], states.device
    soft, skips = (torch.empty(rows, device=device) for _ in range(2))
    active = torch.empty(rows, dtype=torch.uint8, device=device)
    order = torch.empty(rows, dtype=torch.int64, device=device)
    count = torch.empty(1, dtype=torch.int32, device=device)
    linear = weight is not None
    if linear and (states.numel() > MOST_STATES or states.shape[1] % 16):
        states, linear = states.float() @ weight.float() + bias.float(), False
    config = choose("skip_gate", rows, device)
    launching.launch(
        skip_gate_kernel, (1,),
        states.contiguous(), weight.contiguous() if linear else states, bias if linear else states,
        soft, skips, active, order, count,
        rows, states.shape[1] if linear else 1, float(threshold),
        LINEAR=linear, BLOCK=config.block, ROWS=16 if linear else config.block, UNITS=128, num_warps=config.warps,
    )  # fmt: skip
    return soft, skips, order, count
