"""Internals of torch and transformers that this package uses, all in one place: what another release may change.

`pyproject.toml` bounds both from above for their sake.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook as register_optimizer_step_post_hook
from transformers import PretrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss as ForSequenceClassificationLoss
from transformers.masking_utils import create_bidirectional_mask as create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertLayer as BertLayer
from transformers.models.bert.modeling_bert import BertPreTrainedModel as BertPreTrainedModel
from transformers.models.bert.modeling_bert import BertSelfAttention as BertSelfAttention


def attention_implementation(config: PretrainedConfig) -> str | None:
    """By which of transformers' attentions a model attends, such as "sdpa"."""
    return config._attn_implementation


def has_onednn() -> bool:
    """Whether this torch comes with oneDNN's linear layers."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight [O, I] on a CPU, laid out for `onednn_linear`; `to_dense()` gives it back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def onednn_linear(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
    """Rows [R, I] times a weight of `onednn_weight`, with "none", "gelu" or "tanh" on the way out -> [R, O]."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, activation, [], "none")


def dynamic_int8(linear: nn.Linear) -> nn.Module:
    """A linear layer as torch's dynamic quantization has it: int8 weights, a scale per output.

    Raises:
        ImportError, RuntimeError: where torch cannot quantize.
    """
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import per_channel_dynamic_qconfig

    plain = nn.Linear(linear.in_features, linear.out_features, device="meta")  # torch takes no class but its own
    plain.weight, plain.bias = linear.weight, linear.bias
    plain.qconfig = per_channel_dynamic_qconfig
    return Linear.from_float(plain)


@contextmanager
def quiet_quantization() -> Iterator[None]:
    """Within, torch does not warn of its dynamic quantization.

    torch means to remove it in favour of torchao, whose int8 layers, however, are slower than bfloat16 on a CPU, and compiled
    no faster than these.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor", UserWarning)
        yield


def recompile_limit(times: int) -> AbstractContextManager[None]:
    """Within, torch.compile compiles one function up to so many times."""
    from torch._dynamo import config  # only now: its import takes long

    return config.patch(recompile_limit=times)


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Samples attend to themselves on a GPU: [T, heads, D] three times, bounds [B + 1] int32 -> [T, heads, D]."""
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn(query, key, value, bounds, bounds, longest, longest)
