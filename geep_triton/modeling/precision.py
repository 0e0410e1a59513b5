"""A model's twin in another precision, for inference: the same answers but for rounding."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import nn
from transformers.models.bert.modeling_bert import BertLayer

from geep_triton.checks import check_choice
from geep_triton.modeling.heads import AttentionHead, build_heads
from geep_triton.modeling.lean import lean, replace_layers
from geep_triton.modeling.linear import PaddedLinear, check_own, convert_linear, is_plain, to_int8
from geep_triton.modeling.model import MultiExitBert

DTYPES = ("float32", "bfloat16", "float16", "int8")
HALF = ("bfloat16", "float16")


def dtype_name(model: MultiExitBert) -> str:
    """The precision of a model's weights, e.g. "float32"."""
    return str(model.dtype).removeprefix("torch.")


def is_int8(model: MultiExitBert) -> bool:
    """Whether layers are torch's int8 ones."""
    return any(isinstance(module, torch.ao.nn.quantized.dynamic.Linear) for module in model.bert.encoder.modules())


def in_dtype(model: MultiExitBert, dtype: str) -> MultiExitBert:
    """A twin of `model` for inference whose weights are in `dtype`; the model itself where they already are.

    The twin holds what was converted as its own, and shares all else with the model, its configuration above all. What the
    model learns later does not reach it.

    "int8" is torch's dynamic quantization: the linear layers of the encoder, and those that an attention head runs on every
    token, hold int8 weights, a scale per output; all else stays in float32. Activations get one scale a batch, so answers vary
    a little with the texts that share one.

    Raises:
        ValueError: an unknown dtype; int8 for a model that is not in float32 on a CPU, that has adapters or hooks, or where
            torch cannot do it; a model that was packed in place.
    """
    check_choice("dtype", dtype, DTYPES)
    if dtype == dtype_name(model):
        return model
    if model.packed:
        raise ValueError(f"dtype {dtype!r}: the model was packed in place, in {dtype_name(model)}, and stays so: load it again")
    if dtype == "int8":
        return _quantized(model)
    return twin(model, getattr(torch, dtype)).eval()


def with_few_row_counts(model: MultiExitBert) -> MultiExitBert:
    """A twin of a model in half precision on a CPU, whose plain linear layers run on few numbers of rows; see `pad_rows`."""
    other = twin(model).eval()
    convert_linear(other, lambda linear: PaddedLinear.of(linear) if is_plain(linear) else linear)
    return other


def twin(model: MultiExitBert, dtype: torch.dtype | None = None) -> MultiExitBert:
    """A model of the same tensors, in `dtype` where one is given; modules may be replaced in it and the other never knows."""
    shared = [model.config, *model.buffers()] + ([] if model.exit_table is None else [model.exit_table])
    memo = {id(thing): thing for thing in shared}
    for parameter in model.parameters():
        value = parameter if dtype is None else nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
        memo[id(parameter)] = value
    return copy.deepcopy(model, memo)


def _quantized(model: MultiExitBert) -> MultiExitBert:
    if model.device.type != "cpu":
        raise ValueError(f"dtype 'int8' is for models on a CPU, got one on {model.device}; known there: float32, bfloat16")
    if model.dtype != torch.float32:
        raise ValueError(f"dtype 'int8' needs a model in float32, got {model.dtype}")
    check_convertible(model, "dtype 'int8'")
    other = twin(model).eval()
    with warnings.catch_warnings():
        # torch means to remove this interface in favour of torchao, whose int8 layers, however, are slower than bfloat16 on a
        # CPU, and compiled no faster than these.
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        try:
            replace_layers(other, _quantized_layer)
            for head in set(other.heads.values()):
                if isinstance(head, AttentionHead):
                    for name in head.token_layers:
                        setattr(head, name, to_int8(getattr(head, name)))
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"dtype 'int8': torch {torch.__version__} cannot quantize here: {error}") from error
    return other


def _quantized_layer(layer: nn.Module) -> nn.Module:
    layer = lean(layer, fuse=True)  # one input is quantized once, not three times
    convert_linear(layer, to_int8)
    return layer


def check_convertible(model: MultiExitBert, option: str) -> None:
    """ValueError for a model whose layers or heads are not just what its configuration says, before anything is converted."""
    with torch.device("meta"):
        layer, heads = BertLayer(model.config), build_heads(model.config)
    for number, own in enumerate(model.bert.encoder.layer, start=1):
        check_own(f"layer {number}", own, layer, option)
    for number, own in model.heads.items():
        check_own(f"head {number}", own, heads[number], option)
