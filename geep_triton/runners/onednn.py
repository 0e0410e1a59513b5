"""Modules converted for oneDNN on a CPU: weights laid out once in float32 or bfloat16, or in int8."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUActivation

from geep_triton.compat import has_onednn, quiet_quantization
from geep_triton.modeling.heads import AttentionHead
from geep_triton.runners.lean import lean, replace_layers
from geep_triton.runners.linear import PackedLinear, convert_linear, to_int8
from geep_triton.runners.parts import Parts


def lay_out(parts: Parts) -> None:
    """Replace the linear layers of layers and heads by `PackedLinear`, one after another, and layers by lean ones.

    Args:
        parts: in float32 or bfloat16 on a CPU.

    Raises:
        ValueError: a torch without oneDNN's linear layers.
    """
    if not has_onednn():
        raise ValueError(f"runner 'onednn': this torch ({torch.__version__}) comes without oneDNN's linear layers")
    for part in (parts.layers, parts.heads):
        convert_linear(part, PackedLinear)
    for layer in parts.layers:
        if isinstance(layer.intermediate.intermediate_act_fn, GELUActivation):
            layer.intermediate.dense.activation = "gelu"
            layer.intermediate.intermediate_act_fn = nn.Identity()
    for head in parts.heads.values():
        if isinstance(head, AttentionHead):
            head.reduce.activation, head.activation = "tanh", nn.Identity()
    replace_layers(parts.layers, lean)


def quantize(parts: Parts) -> None:
    """Make the linear layers that run on every token torch's dynamic int8 ones, layer by layer; all else stays in float32.

    They hold int8 weights, a scale per output. Activations get one scale a batch, so answers vary a little with the texts that
    share one.

    Args:
        parts: in float32 on a CPU.

    Raises:
        ValueError: a torch that cannot quantize here.
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
