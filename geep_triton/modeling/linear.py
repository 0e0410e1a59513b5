"""Linear layers for inference on a CPU: laid out for oneDNN, or torch's int8 ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# oneDNN builds a kernel for each number of rows that it meets, in the time of some 30 rows of BERT-base's largest product, and
# keeps the last 1,024. Shrinking batches have any number of rows: beyond FEW it is made a multiple of ROWS, so that few do.
FEW, ROWS = 64, 16


class PackedLinear(nn.Module):
    """A linear layer [.., I] -> [.., O] for inference on a CPU, in float32 or bfloat16.

    torch multiplies float32 matrices by MKL, which on processors that are not Intel's may reach less than half of what they
    can do; oneDNN, which torch brings along, does not. Its weight is laid out once for that, and laid out plainly again for a
    state dict. An activation ("none", "gelu" or "tanh") is applied on the way out.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        rows = states.reshape(-1, states.shape[-1])
        count = len(rows)
        if count > FEW and count % ROWS:
            rows = F.pad(rows, (0, 0, 0, -count % ROWS))
        out = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, self.activation, [], "none")
        return out[:count].unflatten(0, states.shape[:-1])

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._weight.to_dense()
        if self._bias is not None:
            destination[f"{prefix}bias"] = self._bias

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedLinear:
        # What holds the weight cannot be copied; nothing ever writes to it.
        return copy.copy(self)


def converted_to(linear: nn.Module) -> str | None:
    """What an engine turned a linear layer into: "packed" or "int8"; None: it did not."""
    if isinstance(linear, PackedLinear):
        return "packed"
    return "int8" if isinstance(linear, torch.ao.nn.quantized.dynamic.Linear) else None
