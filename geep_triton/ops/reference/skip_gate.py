"""Skip gates: which rows run a layer."""

from __future__ import annotations

import torch

from geep_triton.ops.reference.partition import partition


def skip_gate(
    states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.skip_gate.skip_gate`."""
    logits = states.float()
    if weight is not None:
        with torch.autocast(states.device.type, enabled=False):  # under mixed precision in float32 too, as the kernel is
            logits = logits @ weight.float() + bias.float()
    soft = logits.sigmoid()
    skips = soft >= threshold  # a NaN compares false: a layer is never skipped by mistake
    return soft, skips.float(), *partition(~skips)
