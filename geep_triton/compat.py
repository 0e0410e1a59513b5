"""All internals of torch and transformers that this package uses. Another release may change them.

`pyproject.toml` therefore has upper bounds for both packages.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
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


def dynamic_int8(linear: nn.Linear) -> nn.Module:
    """A linear layer under torch's dynamic quantization: int8 weights, one scale per output.

    Raises:
        ImportError: this torch has no quantization.
        RuntimeError: this torch cannot quantize on this machine.
    """
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import per_channel_dynamic_qconfig

    plain = nn.Linear(linear.in_features, linear.out_features, device="meta")  # torch accepts no subclass of Linear
    plain.weight, plain.bias = linear.weight, linear.bias
    plain.qconfig = per_channel_dynamic_qconfig  # type: ignore[assignment]  # what torch reads, no part of the module
    return Linear.from_float(plain)


@contextmanager
def quiet_quantization() -> Iterator[None]:
    """Silence torch's warnings about its dynamic quantization within the block.

    torch plans to replace it with torchao. On a CPU, however, torchao's int8 layers are slower than bfloat16, and they are no
    faster than these when compiled.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        yield


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
