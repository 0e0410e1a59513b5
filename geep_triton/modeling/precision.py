"""A model's twin in another precision, for inference: the same answers but for rounding."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn

from geep_triton.checks import check_choice
from geep_triton.modeling.heads import AttentionHead
from geep_triton.modeling.lean import make_lean
from geep_triton.modeling.model import MultiExitBert

DTYPES = ("float32", "bfloat16", "int8")


def dtype_name(model: MultiExitBert) -> str:
    """The precision of a model's layers, e.g. "float32"."""
    return "int8" if model.converted_to == "int8" else str(model.dtype).removeprefix("torch.")


def in_dtype(model: MultiExitBert, dtype: str, in_place: bool = False) -> MultiExitBert:
    """A twin of `model` for inference whose weights are in `dtype`; the model itself where they already are.

    The twin holds what was converted as its own, and shares all else with the model, its configuration above all. What the
    model learns later does not reach it. With `in_place` it is the model itself that is converted.

    "int8" is torch's dynamic quantization: the linear layers of the encoder, and those that an attention head runs on every
    token, hold int8 weights, a scale per output; all else stays in float32. Activations get one scale a batch, so answers vary
    a little with the texts that share one.

    Raises:
        ValueError: an unknown dtype; int8 for a model that is not in float32 on a CPU, or where torch cannot do it; a model
            that an engine converted in place.
    """
    check_choice("dtype", dtype, DTYPES)
    if dtype == dtype_name(model):
        return model
    if model.converted_to is not None:
        raise ValueError(
            f"dtype {dtype!r}: the model was converted in place ({model.converted_to}, {dtype_name(model)}) and has no other "
            "weights: load it again"
        )
    if dtype == "int8":
        return _quantized(model, in_place)
    if not in_place:
        return twin(model, getattr(torch, dtype)).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def twin(model: MultiExitBert, dtype: torch.dtype | None = None) -> MultiExitBert:
    """A model of the same tensors, in `dtype` where one is given; modules may be replaced in it and the other never knows."""
    shared = [model.config, *model.buffers()] + ([] if model.exit_table is None else [model.exit_table])
    memo = {id(thing): thing for thing in shared}
    for parameter in model.parameters():
        value = parameter if dtype is None else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        memo[id(parameter)] = value
    return copy.deepcopy(model, memo)


def _quantized(model: MultiExitBert, in_place: bool) -> MultiExitBert:
    if model.device.type != "cpu":
        raise ValueError(f"dtype 'int8' is for models on a CPU, got one on {model.device}; known there: float32, bfloat16")
    if model.dtype != torch.float32:
        raise ValueError(f"dtype 'int8' needs a model in float32, got {model.dtype}")
    other = model if in_place else twin(model).eval()
    make_lean(other, fuse=True)  # one input is quantized once, not three times
    with warnings.catch_warnings():
        # torch means to remove this interface in favour of torchao, whose int8 layers, however, are slower than bfloat16 on a
        # CPU, and compiled no faster than these.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        try:
            from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

            quantize_dynamic(other.bert.encoder, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
            for head in other.heads.values():
                if isinstance(head, AttentionHead):
                    for name in head.token_layers:
                        setattr(head, name, _plain(getattr(head, name)))
                    quantize_dynamic(head, dict.fromkeys(head.token_layers, per_channel_dynamic_qconfig), inplace=True)
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"dtype 'int8': torch {torch.__version__} cannot quantize here: {error}") from error
    return other


def _plain(linear: nn.Linear) -> nn.Linear:
    """The same layer as torch's own class, the only one that its quantization takes."""
    plain = nn.Linear(linear.in_features, linear.out_features, device="meta")
    plain.weight, plain.bias = linear.weight, linear.bias
    return plain
