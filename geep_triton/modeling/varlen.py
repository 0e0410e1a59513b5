"""Attention that leaves padding out by where texts begin and end, without a mask: torch's variable-length attention."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface

from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.precision import dtype_name, twin

NAME = "geep_triton_varlen"


def varlen_layers(model: MultiExitBert) -> MultiExitBert:
    """A twin of `model` for inference that shares all it holds, whose layers attend by offsets instead of masks.

    Padded batches stay as they are, so nothing is copied and the host waits for nothing: a sample's tokens and its padding are
    two texts, of which each attends to itself. Batches without padding run as before.

    Args:
        model: in evaluation mode; on a GPU in half precision. Elsewhere texts run one by one, which is for tests.

    Raises:
        ValueError: another attention than SDPA, or a GPU without half precision.
    """
    if model.config._attn_implementation != "sdpa":
        raise ValueError(f"varlen=True needs attn_implementation 'sdpa', got {model.config._attn_implementation!r}")
    if model.device.type == "cuda" and model.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"varlen=True is for float16 and bfloat16 on a GPU, got {dtype_name(model)}")
    AttentionInterface.register(NAME, attend)
    other = twin(model).eval()
    config = copy.copy(model.config)
    config._attn_implementation = NAME
    for layer in other.bert.encoder.layer:
        layer.attention.self.config = config
    other.layer_mask = _offsets
    return other


def _offsets(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mask [B, S] of samples padded at their end -> [2 B + 1] int32, where each sample's tokens and its padding begin."""
    lengths = attention_mask.sum(1)
    both = torch.stack([lengths, attention_mask.shape[1] - lengths], dim=1).flatten()
    return F.pad(both.cumsum(0), (1, 0)).int()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for transformers' interface: [B, heads, S, D] three times, offsets or None -> [B, S, heads, D]."""
    if attention_mask is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None
    samples, _, longest, _ = query.shape
    flat = [states.transpose(1, 2).flatten(0, 1) for states in (query, key, value)]
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        attended = varlen_attn(*flat, attention_mask, attention_mask, longest, longest)
    else:
        texts = zip(*(states.split(attention_mask.diff().tolist()) for states in flat), strict=True)
        attended = torch.cat([_alone(*text) for text in texts])
    return attended.unflatten(0, (samples, longest)), None


def _alone(*text: torch.Tensor) -> torch.Tensor:
    """One text's query, key and value, [T, heads, D] each -> [T, heads, D]."""
    return F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in text)).transpose(0, 1)
