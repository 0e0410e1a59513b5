"""Skip gates: which rows run a layer."""

from __future__ import annotations

import torch

from geep_triton.ops.reference.partition import partition


def skip_gate(
    states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, threshold: float
) -> tuple[torch.Tensor, ...]:
    """See `geep_triton.ops.skip_gate.skip_gate`."""
    logits = states.float()
    if weight is not None and bias is not None:  # they come together
        with torch.autocast(states.device.type, enabled=False):  # float32 even under mixed precision, as in the kernel
            logits = logits @ weight.float() + bias.float()
    soft = logits.sigmoid()
    skips = soft >= threshold  # a comparison with NaN is False, so NaN never skips a layer
    return soft, skips.float(), *partition(~skips)
