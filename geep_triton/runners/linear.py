"""Replaces linear layers for inference, and refuses to lose what a model has besides them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from geep_triton.runners.onednn.rows import on_padded_rows


class PaddedLinear(nn.Linear):
    """A linear layer for inference in half precision on a CPU, where torch uses oneDNN."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        return on_padded_rows(super().forward, states)

    @classmethod
    def of(cls, linear: nn.Linear) -> PaddedLinear:
        """Make it from a linear layer and share its weights."""
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made


def convert_linear(part: nn.Module, convert: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the linear layers below a module one by one, so that each is freed before the next is converted."""
    for module in [module for module in part.modules() if not isinstance(module, nn.Linear)]:
        for name in [name for name, child in module.named_children() if isinstance(child, nn.Linear)]:
            setattr(module, name, convert(getattr(module, name)))


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks or an overridden forward change what the module does."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def is_plain(linear: nn.Linear) -> bool:
    """Whether this is torch's own linear layer without changes."""
    return type(linear) is nn.Linear and not has_hooks(linear)


def check_own(name: str, module: nn.Module, expected: nn.Module, option: str) -> None:
    """Raise ValueError if a conversion would lose something: modules that `expected` does not have (adapters), or hooks."""
    classes = {part: type(child) for part, child in expected.named_modules()}
    found = dict(module.named_modules())
    for part in dict.fromkeys([*classes, *found]):
        where, child = f"{name}{part and f', {part}'}", found.get(part)
        if child is None or type(child) is not classes.get(part):
            wanted = classes[part].__name__ if part in classes else "nothing"
            raise ValueError(
                f"{option}: {where} is a {type(child).__name__}, expected {wanted}: merge or remove adapters first"
            )
        if has_hooks(child):
            raise ValueError(f"{option}: {where} has forward hooks, which would be lost: remove them first")
