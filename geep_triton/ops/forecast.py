"""Forecasts: from the answer of one exit, how likely this exit and each deeper one give the last exit's answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.checks import check_kind, check_tensor
from geep_triton.ops.dispatch import implementation


@dataclass(frozen=True, eq=False)
class ForecastNet:
    """The net of one exit: two linear layers with a ReLU between them, all float32 and on one device.

    Attributes:
        hidden_weight: [2 C, U], from the C logits and then their C softmax shares to U hidden units.
        hidden_bias: [U].
        weight: [U, K], to the K exits from this one on.
        bias: [K].
    """

    hidden_weight: torch.Tensor
    hidden_bias: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def check(self) -> None:
        """Raise ValueError or TypeError unless the parts are tensors of float32 that fit together."""
        check_tensor("net.hidden_weight", self.hidden_weight, 2, torch.float32)
        check_tensor("net.hidden_bias", self.hidden_bias, 1, torch.float32)
        check_tensor("net.weight", self.weight, 2, torch.float32)
        check_tensor("net.bias", self.bias, 1, torch.float32)
        (inputs, units), exits = self.hidden_weight.shape, self.weight.shape[1]
        fits = self.weight.shape[0] == units and self.hidden_bias.shape == (units,) and self.bias.shape == (exits,)
        if not fits or inputs % 2:
            parts = (self.hidden_weight, self.hidden_bias, self.weight, self.bias)
            shapes = ", ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"net must have shapes (2 C, U), (U,), (U, K) and (K,), got {shapes}")


def forecast(logits: torch.Tensor, net: ForecastNet, *, backend: str | None = None) -> torch.Tensor:
    """The probability that this exit and each deeper one give the last exit's answer: sigmoid(relu([z, p] V + a) W + b).

    A module that learns when to exit is BERxiT's (Xin et al. 2021, section 4), which reads hidden states and looks at its own
    exit only. That this one reads the answer, and looks at deeper exits too, is *our addition*.

    Args:
        logits: [N, C] floating point, the answers z of the exit; p are their softmax. They are used in float32.
        net: of this exit, on the device of the logits.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        [N, K] float32, 0..1. It is 0 for every exit where a logit of the row is not finite: nothing is known of such a sample.
        It may be NaN where finite logits are so large that the net overflows.

    Raises:
        ValueError: a shape does not fit, or net and logits are on different devices.
        TypeError: the logits are not floating point, or an argument has another type or dtype.
    """
    check_tensor("logits", logits, 2)
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    check_kind("net", net, ForecastNet)
    net.check()
    if 2 * logits.shape[1] != net.hidden_weight.shape[0]:
        raise ValueError(f"logits must have {net.hidden_weight.shape[0] // 2} columns, as the net, got {logits.shape[1]}")
    if logits.device != net.bias.device:
        raise ValueError(f"net must be on the device of the logits, {logits.device}, got {net.bias.device}")
    return implementation("forecast", logits.device, backend).forecast(logits, **vars(net))
