"""BERT's layer for inference, without the code of transformers for training, decoding and other attentions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from geep_triton.compat import BertLayer, BertSelfAttention, attention_implementation

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any, float], torch.Tensor]


def attend_padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention by SDPA: [B, S, heads, D] three times, an additive mask [B, 1, 1, S] or None -> [B, S, heads, D]."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2)


class LeanLayer(nn.Module):
    """A `BertLayer` with SDPA attention: its linear layers, norms and arithmetic, and nothing else.

    The omitted code has a fixed cost even for few tokens. Only the linear layers, norms and the activation are called as
    modules.

    Attributes:
        fused: whether one linear layer `attention.self.qkv` computes query, key and value together.
        attend: ([.., heads, D] three times, mask, scale) -> [.., heads, D].
    """

    attention: Any  # transformers' BertAttention; fused, its own projects by a "qkv" that no type knows

    def __init__(self, layer: BertLayer, fused: bool, attend: Attend) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output
        self.fused = fused
        self.attend = attend

    def forward(self, hidden: torch.Tensor, mask: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        """[.., H] and the mask for `attend` -> [.., H].

        transformers' own encoder passes further arguments for decoders. This layer is never part of a decoder.
        """
        project, expand, reduce = self.attention.output, self.intermediate, self.output
        hidden = project.LayerNorm(project.dense(self._attended(hidden, mask)) + hidden)
        return reduce.LayerNorm(reduce.dense(expand.intermediate_act_fn(expand.dense(hidden))) + hidden)

    def _attended(self, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
        # Apart, so that query, key and value are let go before the rest needs memory.
        attention = self.attention.self
        if self.fused:
            states = attention.qkv(hidden).chunk(3, dim=-1)
        else:
            states = (attention.query(hidden), attention.key(hidden), attention.value(hidden))
        query, key, value = (each.unflatten(-1, (-1, attention.attention_head_size)) for each in states)
        return self.attend(query, key, value, mask, attention.scaling).flatten(-2)


def replace_layers(layers: nn.ModuleList, make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace each layer by `make(layer)`, one after another. Shared layers stay shared."""
    made: dict[int, nn.Module] = {}
    for number, layer in enumerate(layers):
        if id(layer) not in made:
            made[id(layer)] = make(layer)
        layers[number] = made[id(layer)]


def lean(layer: nn.Module, fuse: bool = False, attend: Attend = attend_padded) -> nn.Module:
    """Make a layer lean if it uses SDPA attention. It is for inference only from then on.

    Args:
        layer: a layer of transformers, or a converted one.
        fuse: whether to fuse query, key and value into one linear layer.
        attend: see `LeanLayer`.
    """
    if not isinstance(layer, BertLayer) or attention_implementation(layer.attention.self.config) != "sdpa":
        return layer
    if fuse and isinstance(layer.attention.self, BertSelfAttention):
        _fuse(layer.attention.self)
    return LeanLayer(layer, fuse, attend)


def _fuse(attention: BertSelfAttention) -> None:
    parts = [attention.query, attention.key, attention.value]
    attention.qkv = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), device="meta")
    attention.qkv.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    attention.qkv.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    del attention.query, attention.key, attention.value
