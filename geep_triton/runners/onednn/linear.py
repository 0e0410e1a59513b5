"""A linear layer in oneDNN's layout, in float32 or bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from geep_triton.compat import onednn_linear, onednn_weight
from geep_triton.runners.onednn.rows import on_padded_rows


class OnednnLinear(nn.Module):
    """A linear layer [.., I] -> [.., O] for inference on a CPU, in float32 or bfloat16.

    torch multiplies float32 matrices with MKL, which may reach less than half of the speed of processors that are not Intel's.
    oneDNN, which is part of torch, does not have this problem. The weight is converted to its layout once. State dicts, copies
    and pickles have the weight that was laid out. An activation ("none", "gelu" or "tanh") is applied to the output.

    Args:
        linear: the layer.
        activation: of the output.
        dtype: of the product, to which inputs are converted. None: the layer's.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none", dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.activation = activation
        self._weight = onednn_weight(linear.weight.to(dtype))
        self._bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        return on_padded_rows(self.on_rows, states.to(self._weight.dtype))

    def on_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """[R, I] -> [R, O]. For each new R a kernel is built."""
        return onednn_linear(rows, self._weight, self._bias, self.activation)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_weight": onednn_weight(state["_weight"])})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._weight.to_dense()
        if self._bias is not None:
            destination[f"{prefix}bias"] = self._bias
