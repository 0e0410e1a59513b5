"""BERT's layer for inference, without what transformers' has around it for training, decoding and other attentions."""

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
    split = (states.transpose(1, 2) for states in (query, key, value))
    return F.scaled_dot_product_attention(*split, attn_mask=mask, scale=scale).transpose(1, 2)


class LeanLayer(nn.Module):
    """A `BertLayer` that attends by SDPA: its linear layers and norms, its arithmetic, and nothing else.

    What is left out costs the same however few tokens run. No part but the linear layers, norms and activation is called.

    Attributes:
        fused: whether `attention.self` projects to query, key and value at once, by one linear layer "qkv".
        attend: [.., heads, D] three times, mask, scale -> [.., heads, D].
    """

    def __init__(self, layer: BertLayer, fused: bool, attend: Attend) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output
        self.fused = fused
        self.attend = attend

    def forward(self, hidden: torch.Tensor, mask: Any = None, *_: Any, **__: Any) -> torch.Tensor:
        """[.., H], and the mask that `attend` takes -> [.., H].

        transformers' own encoder passes more, for decoders, which this layer is never part of.
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
        split = (each.unflatten(-1, (-1, attention.attention_head_size)) for each in states)
        return self.attend(*split, mask, attention.scaling).flatten(-2)


def replace_layers(layers: nn.ModuleList, make: Callable[[nn.Module], nn.Module]) -> None:
    """Replace each layer by what `make` makes of it, one after another; those that are shared stay so."""
    made: dict[int, nn.Module] = {}
    for number, layer in enumerate(layers):
        if id(layer) not in made:
            made[id(layer)] = make(layer)
        layers[number] = made[id(layer)]


def lean(layer: nn.Module, fuse: bool = False, attend: Attend = attend_padded) -> nn.Module:
    """A layer, which is for inference only from now on, made lean if it attends by SDPA.

    Args:
        layer: transformers' own, or one that was converted.
        fuse: whether query, key and value become one linear layer, too.
        attend: see `LeanLayer`.
    """
    if attention_implementation(layer.attention.self.config) != "sdpa":
        return layer
    if fuse:
        _fuse(layer.attention.self)
    return LeanLayer(layer, fuse, attend)


def _fuse(attention: BertSelfAttention) -> None:
    parts = [attention.query, attention.key, attention.value]
    attention.qkv = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), device="meta")
    attention.qkv.weight = nn.Parameter(torch.cat([part.weight.detach() for part in parts]), requires_grad=False)
    attention.qkv.bias = nn.Parameter(torch.cat([part.bias.detach() for part in parts]), requires_grad=False)
    del attention.query, attention.key, attention.value
