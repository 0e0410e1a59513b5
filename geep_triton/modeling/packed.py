"""A model whose linear layers are laid out for oneDNN, on a CPU."""

from __future__ import annotations

import torch
from torch import nn
from transformers.activations import GELUActivation

from geep_triton.modeling.heads import AttentionHead
from geep_triton.modeling.linear import PackedLinear, convert_linear
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.precision import check_convertible, dtype_name, is_int8, twin


def pack_layers(model: MultiExitBert, in_place: bool = False) -> MultiExitBert:
    """A twin of `model` for inference whose layers and heads are `PackedLinear`; it shares all else with the model.

    The model stays as it is; the twin holds its layers' weights a second time. With `in_place` they are packed in the model
    itself, one after another, so that nothing is held twice.

    Raises:
        ValueError: a model that is quantized, of another dtype, has adapters or hooks, or is not on a CPU, or a torch without
            oneDNN.
    """
    if model.device.type != "cpu":
        raise ValueError(f"packed=True is for models on a CPU, got one on {model.device}")
    if model.packed:
        return model
    if is_int8(model):
        raise ValueError("packed=True: torch's int8 layers have a layout of their own; choose dtype float32 or bfloat16")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"packed=True is for float32 and bfloat16, got {dtype_name(model)}")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        raise ValueError(f"packed=True: this torch ({torch.__version__}) comes without oneDNN's linear layers")
    check_convertible(model, "packed=True")
    other = model if in_place else twin(model).eval()
    for part in (other.bert.encoder, other.heads):
        convert_linear(part, PackedLinear)
    for layer in other.bert.encoder.layer:
        if isinstance(layer.intermediate.intermediate_act_fn, GELUActivation):
            layer.intermediate.dense.activation = "gelu"
            layer.intermediate.intermediate_act_fn = nn.Identity()
    for head in other.heads.values():
        if isinstance(head, AttentionHead):
            head.reduce.activation, head.activation = "tanh", nn.Identity()
    other.packed = in_place
    return other
