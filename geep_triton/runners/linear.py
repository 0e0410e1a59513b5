"""Linear layers for inference on a CPU: in oneDNN's layout, or torch's int8 layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from geep_triton.compat import dynamic_int8, onednn_linear, onednn_weight

# oneDNN builds a kernel for each number of rows that it meets, in the time of some 30 rows of BERT-base's largest product, and
# keeps the last 1,024, of up to a megabyte each. Shrinking batches have any number of rows; above the first of a pair it is
# made a multiple of the second, so that few kernels do.
MULTIPLES = ((512, 32), (64, 16), (16, 8))


def pad_rows(states: torch.Tensor) -> torch.Tensor:
    """[.., I] -> [R, I]: all rows, padded with zeros so that few different numbers of rows occur."""
    rows = states.reshape(-1, states.shape[-1])
    multiple = next((multiple for above, multiple in MULTIPLES if len(rows) > above), 1)
    return F.pad(rows, (0, 0, 0, -len(rows) % multiple)) if len(rows) % multiple else rows


def on_padded_rows(product: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """Apply a product of rows, [R, I] -> [R, O], to states: [.., I] -> [.., O]."""
    return product(pad_rows(states))[: states.shape[:-1].numel()].unflatten(0, states.shape[:-1])


class OnednnLinear(nn.Module):
    """A linear layer [.., I] -> [.., O] for inference on a CPU, in float32 or bfloat16.

    torch multiplies float32 matrices with MKL, which may reach less than half of the speed of processors that are not Intel's.
    oneDNN, which is part of torch, does not have this problem. The weight is converted to its layout once. State dicts, copies
    and pickles have the original weight. An activation ("none", "gelu" or "tanh") is applied to the output.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self._weight = onednn_weight(linear.weight)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        return on_padded_rows(self._product, states)

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        return onednn_linear(rows, self._weight, self._bias, self.activation)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_weight": self._weight.to_dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_weight": onednn_weight(state["_weight"])})

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self._weight.to_dense()
        if self._bias is not None:
            destination[f"{prefix}bias"] = self._bias


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


class PaddedInt8Linear(nn.Module):
    """torch's int8 layer, which uses oneDNN too. Padding with zeros does not change the scale of its activations."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[.., I] -> [.., O]."""
        return on_padded_rows(self.linear, states)


def to_int8(linear: nn.Linear) -> PaddedInt8Linear:
    """The linear layer under torch's dynamic quantization: int8 weights, one scale per output."""
    return PaddedInt8Linear(dynamic_int8(linear))


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
