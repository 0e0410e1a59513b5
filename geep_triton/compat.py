"""All internals of torch and transformers that this package uses. Another release may change them.

`pyproject.toml` therefore has upper bounds for both packages.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook as register_optimizer_step_post_hook
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss as ForSequenceClassificationLoss
from transformers.masking_utils import create_bidirectional_mask as create_bidirectional_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.bert.modeling_bert import BertLayer as BertLayer
from transformers.models.bert.modeling_bert import BertPreTrainedModel as BertPreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention as BertSelfAttention


def name_text_classifiers(model_type: str, names: tuple[str, ...]) -> None:
    """Tell transformers that classes of these names classify texts.

    Otherwise its text-classification pipeline works, but reports an error. Registering a class does not tell it.
    """
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.setdefault(model_type, names)  # type: ignore[arg-type]  # as read there


def attention_implementation(config: PretrainedConfig) -> str | None:
    """Name of the attention implementation of a model in transformers, such as "sdpa"."""
    return config._attn_implementation


def has_onednn() -> bool:
    """Whether this torch has oneDNN's linear layers."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [O, I] on a CPU in the layout for `onednn_linear`. `to_dense()` converts it back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def onednn_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """Multiply rows [R, I] by a weight of `onednn_weight`, then apply "none", "gelu" or "tanh": [R, O]."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "none")


def has_onednn_int8() -> bool:
    """Whether this torch has oneDNN's int8 products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


def packed_int8(weight: torch.Tensor) -> torch.Tensor:
    """A weight [O, I] int8 in the layout for `onednn_int8_linear`; as it is where this torch has no such products."""
    return torch.ops.onednn.qlinear_prepack(weight, None) if has_onednn_int8() else weight


def unpacked_int8(weight: torch.Tensor) -> torch.Tensor:
    """The weight [O, I] int8 that `packed_int8` was given."""
    return weight.to_dense().t().contiguous() if weight.is_mkldnn else weight


def onednn_int8_linear(
    rows: torch.Tensor,
    input_scale: float,
    input_zero: int,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    weight_zero: torch.Tensor,
    bias: torch.Tensor,
    activation: str,
    output: tuple[float, int] | torch.dtype,
) -> torch.Tensor:
    """Multiply rows [R, I] uint8 by a weight of `packed_int8`, then apply "none", "gelu" or "relu": [R, O].

    Args:
        rows, input_scale, input_zero: they stand for (rows - input_zero) * input_scale.
        weight, weight_scale, weight_zero: [O] int32, zeros; the weight stands for weight * weight_scale.
        bias: [O] float32.
        activation: of the output.
        output: a dtype, or the scale and the zero of a uint8 output.
    """
    scale, zero = (1.0, 0) if isinstance(output, torch.dtype) else output
    dtype = output if isinstance(output, torch.dtype) else torch.uint8
    scales = (input_scale, input_zero, weight, weight_scale, weight_zero, bias, scale, zero)
    return torch.ops.onednn.qlinear_pointwise(rows, *scales, dtype, activation, [], "none")


def rounded_to_uint8(values: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
    """round(values / scale) + zero, between 0 and 255, of float32 values on a CPU: uint8 of the same shape."""
    rounded = torch.quantize_per_tensor(values, scale, zero, torch.quint8)
    # torch's int_repr copies this value by value, in seven times as long as rounding takes.
    raw = torch.empty(0, dtype=torch.uint8)
    return raw.set_(rounded.untyped_storage(), 0, rounded.shape, rounded.stride())


@contextmanager
def quiet_quantization() -> Iterator[None]:
    """Have torch say within the block, unheard, what it says once in a process: that its quantized dtypes will go some day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.quint8)
        yield


def multiplies_int8() -> bool:
    """Whether this CPU multiplies int8 without overflow, as those with VNNI do: products of the largest values are right."""
    if not has_onednn_int8():
        return False
    ones, zeros, weight = torch.ones(16), torch.zeros(16, dtype=torch.int32), torch.full((16, 64), 127, dtype=torch.int8)
    rows, packed = torch.full((16, 64), 255, dtype=torch.uint8), packed_int8(weight)
    found = onednn_int8_linear(rows, 1.0, 0, packed, ones, zeros, torch.zeros(16), "none", torch.float32)
    return bool((found == 64 * 127 * 255).all())


def has_onednn_bfloat16() -> bool:
    """Whether oneDNN multiplies bfloat16 here at all: it refuses to on CPUs that have not even half of the instructions."""
    try:
        onednn_weight(torch.ones(16, 16, dtype=torch.bfloat16))
    except RuntimeError:
        return False
    return True


def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products in bfloat16, and oneDNN takes them."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()) and has_onednn_bfloat16()


def keep_large_blocks() -> None:
    """Have glibc keep blocks of up to 31 MB that torch frees, instead of giving them back to the system.

    glibc does so from the first such block on that is freed. Otherwise a layer's tensors get new pages each time, which the
    system fills with zeros: a tenth of the time of a small model's layer. Other allocators do as they do.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def recompile_limit(times: int) -> AbstractContextManager[None]:
    """Let torch.compile compile one function up to `times` times within the block."""
    from torch._dynamo import config  # imported here because it takes long

    return config.patch(recompile_limit=times)


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention within each sample on a GPU, without padding.

    Args:
        query: [T, heads, D].
        key: [T, heads, D].
        value: [T, heads, D].
        bounds: [B + 1] int32, offsets of the samples.
        longest: length of the longest sample.

    Returns:
        [T, heads, D].
    """
    from torch.nn.attention.varlen import varlen_attn

    attended: Any = varlen_attn(query, key, value, bounds, bounds, longest, longest)  # a pair only where that is asked for
    return attended
