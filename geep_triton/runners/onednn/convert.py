"""Converts modules for oneDNN on a CPU: to its layout in float32 or bfloat16, or to int8."""

from __future__ import annotations

from functools import partial
from typing import TypeGuard

import torch
from torch import nn

from geep_triton.compat import (
    BertLayer,
    attention_implementation,
    has_onednn,
    has_onednn_int8,
    multiplies_bfloat16,
    multiplies_int8,
    quiet_quantization,
)
from geep_triton.modeling.heads import AttentionHead
from geep_triton.modeling.int8_layers import Int8Layers
from geep_triton.runners.lean import replace_layers
from geep_triton.runners.linear import convert_linear
from geep_triton.runners.onednn.int8 import Int8Layer
from geep_triton.runners.onednn.layer import FloatLayer, activation_inside
from geep_triton.runners.onednn.linear import OnednnLinear
from geep_triton.runners.parts import Parts
from geep_triton.warn import warn


def lay_out(parts: Parts) -> None:
    """Replace the linear layers in layers and heads by `OnednnLinear`, one after another, and the layers by `FloatLayer`.

    Layers with another attention than SDPA keep their own code.

    Args:
        parts: modules in float32 or bfloat16 on a CPU.

    Raises:
        ValueError: this torch has no oneDNN linear layers.
    """
    check_onednn(has_onednn(), "linear layers")
    convert_linear(parts.layers, OnednnLinear)
    for layer in parts.layers:
        if isinstance(layer, BertLayer) and (inside := activation_inside(layer)) is not None:
            _activate(layer.intermediate.dense, inside)
            layer.intermediate.intermediate_act_fn = nn.Identity()
    _lay_out_heads(parts, None)
    replace_layers(parts.layers, lambda layer: FloatLayer(layer) if _attends(layer) else layer)


def _lay_out_heads(parts: Parts, dtype: torch.dtype | None) -> None:
    convert_linear(parts.heads, partial(OnednnLinear, dtype=dtype))
    for head in parts.heads.values():
        if isinstance(head, AttentionHead):
            _activate(head.reduce, "tanh")
            head.activation = nn.Identity()


def lay_out_int8(parts: Parts, int8: Int8Layers) -> None:
    """Replace the layers by int8 ones, and the linear layers in heads by `OnednnLinear` in bfloat16 where the CPU has that.

    Args:
        parts: modules in float32 on a CPU.
        int8: their layers in int8.

    Raises:
        ValueError: this torch has no oneDNN int8 products, or the layers have another attention than SDPA.
    """
    check_onednn(has_onednn_int8(), "int8 products")
    layers = [layer for layer in parts.layers if _attends(layer)]
    if len(layers) < len(parts.layers):
        raise ValueError("dtype 'int8' needs layers with SDPA attention: model.set_attn_implementation('sdpa')")
    exact = multiplies_int8()
    if not exact:
        warn("dtype 'int8': this CPU has no int8 products without overflow (VNNI), so they run in float32: right, but slow")
    with quiet_quantization():
        for number, layer in enumerate(layers):
            parts.layers[number] = Int8Layer(layer, int8.products[number], exact)
    _lay_out_heads(parts, torch.bfloat16 if multiplies_bfloat16() else None)


def check_onednn(there: bool, what: str) -> None:
    """Raise ValueError unless oneDNN's ops are there."""
    if not there:
        raise ValueError(f"runner 'onednn': this torch ({torch.__version__}) comes without oneDNN's {what}")


def _attends(layer: nn.Module) -> TypeGuard[BertLayer]:
    return isinstance(layer, BertLayer) and attention_implementation(layer.attention.self.config) == "sdpa"


def _activate(linear: nn.Module, activation: str) -> None:
    """Have a linear layer that was laid out apply the activation, too."""
    if isinstance(linear, OnednnLinear):
        linear.activation = activation
