"""Skip gates: which rows of a batch run a layer (SmartBERT, Hu et al. 2023, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from geep_triton.checks import check_number, check_tensor
from geep_triton.ops.dispatch import implementation


@dataclass(frozen=True, eq=False)
class SkipGate:
    """The gates of one layer, on the device of the states.

    Attributes:
        soft: [N] float32, sigmoid of the gate's logit, with gradient.
        hard: [N] float32, 1.0 if the row skips the layer, else 0.0. Its gradient is that of `soft` (straight-through).
        order: [N] int64, the rows that run the layer before those that skip it. Both groups keep their order.
        num_active: [1] int32, the number of rows that run the layer.
    """

    soft: torch.Tensor
    hard: torch.Tensor
    order: torch.Tensor
    num_active: torch.Tensor


def skip_gate(
    states: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    threshold: float = 0.5,
    *,
    backend: str | None = None,
) -> SkipGate:
    """Decide which rows skip a layer: those whose gate is at or over the threshold.

    Args:
        states: [N] gate logits, or [N, H] pooled states together with `weight` and `bias` of the gate.
        weight: [H], or None for gate logits.
        bias: [1], or None for gate logits.
        threshold: 0..1.
        backend: "torch", "triton", "auto" or None; see `geep_triton.ops.backend.choose_backend`.

    Returns:
        The gates. A row whose gate is NaN runs the layer, and `soft` shows the NaN.

    Raises:
        ValueError: a shape does not fit, there is a weight without a bias, or the threshold is out of range.
        TypeError: an argument is not a tensor, or the threshold is no number.
    """
    if (weight is None) != (bias is None):
        raise ValueError("weight and bias must come together, got only one")
    check_tensor("states", states, 1 if weight is None else 2)
    if weight is not None and bias is not None:
        check_tensor("weight", weight, 1)
        check_tensor("bias", bias, 1)
        if weight.shape != states.shape[1:] or bias.numel() != 1:
            raise ValueError(
                f"weight must have shape {tuple(states.shape[1:])} and bias (1,), "
                f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
    check_number("threshold", threshold, 0.0, 1.0)
    wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (states, weight, bias))
    gates = _StraightThrough.apply if wanted else _gates
    return SkipGate(*gates(states, weight, bias, threshold, backend))


def _gates(
    states: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, threshold: float, backend: str | None
) -> tuple[torch.Tensor, ...]:
    return implementation("skip_gate", states.device, backend).skip_gate(states, weight, bias, threshold)


class _StraightThrough(torch.autograd.Function):
    """Gates whose soft and hard output both have the gradient of the soft gate."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        threshold: float,
        backend: str | None,
    ) -> tuple[torch.Tensor, ...]:
        soft, hard, order, count = _gates(states, weight, bias, threshold, backend)
        ctx.save_for_backward(states, weight, soft)
        ctx.mark_non_differentiable(order, count)
        return soft, hard, order, count

    @staticmethod
    def backward(
        ctx: Any, grad_soft: torch.Tensor, grad_hard: torch.Tensor, _order: None, _count: None
    ) -> tuple[torch.Tensor | None, ...]:
        states, weight, soft = ctx.saved_tensors
        grad = (grad_soft + grad_hard) * soft * (1 - soft)
        if weight is None:
            return grad.to(states.dtype), None, None, None, None
        grad_states = (grad[:, None] * weight.float()).to(states.dtype)
        grad_weight = (grad @ states.float()).to(weight.dtype)
        return grad_states, grad_weight, grad.sum().view(1).to(weight.dtype), None, None
