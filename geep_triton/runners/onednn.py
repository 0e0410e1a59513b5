"""Converts modules for oneDNN on a CPU: to its layout in float32 or bfloat16, or to int8."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUActivation

from geep_triton.compat import BertLayer, has_onednn, quiet_quantization
from geep_triton.modeling.heads import AttentionHead
from geep_triton.runners.lean import lean, replace_layers
from geep_triton.runners.linear import OnednnLinear, convert_linear, to_int8
from geep_triton.runners.parts import Parts


def lay_out(parts: Parts) -> None:
    """Replace the linear layers in layers and heads by `OnednnLinear`, one after another, and the layers by lean ones.

    Args:
        parts: modules in float32 or bfloat16 on a CPU.

    Raises:
        ValueError: this torch has no oneDNN linear layers.
    """
    if not has_onednn():
        raise ValueError(f"runner 'onednn': this torch ({torch.__version__}) comes without oneDNN's linear layers")
    for part in (parts.layers, parts.heads):
        convert_linear(part, OnednnLinear)
    for layer in parts.layers:
        if isinstance(layer, BertLayer) and isinstance(layer.intermediate.intermediate_act_fn, GELUActivation):
            _activate(layer.intermediate.dense, "gelu")
            layer.intermediate.intermediate_act_fn = nn.Identity()
    for head in parts.heads.values():
        if isinstance(head, AttentionHead):
            _activate(head.reduce, "tanh")
            head.activation = nn.Identity()
    replace_layers(parts.layers, lean)


def _activate(linear: nn.Module, activation: str) -> None:
    """Have a linear layer that was laid out apply the activation, too."""
    if isinstance(linear, OnednnLinear):
        linear.activation = activation


def quantize(parts: Parts) -> None:
    """Replace the linear layers that run on every token by torch's dynamic int8 layers. Everything else stays in float32.

    The weights are int8 with one scale per output. Activations get one scale per batch, so answers depend slightly on the other
    texts in the batch.

    Args:
        parts: modules in float32 on a CPU.

    Raises:
        ValueError: this torch cannot quantize on this machine.
    """
    with quiet_quantization():
        try:
            replace_layers(parts.layers, _quantized)
            for head in set(parts.heads.values()):
                if isinstance(head, AttentionHead):
                    for name in head.token_layers:
                        setattr(head, name, to_int8(getattr(head, name)))
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"dtype 'int8': torch {torch.__version__} cannot quantize here: {error}") from error


def _quantized(layer: nn.Module) -> nn.Module:
    layer = lean(layer, fuse=True)  # one input is quantized once, not three times
    convert_linear(layer, to_int8)
    return layer
