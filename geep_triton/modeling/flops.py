"""Floating-point operations of a model's parts for one sample of so many tokens; a multiplication and an addition are two.

What attention, matrix products and linear layers take; additions of biases, activations and normalisation are left out, as
is usual. `tests/test_flops.py` holds them to what PyTorch counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geep_triton.config import MultiExitBertConfig


@dataclass
class Flops:
    """Floating-point operations, by what they were for; see `geep_triton.modeling.flops`.

    Attributes:
        layers, heads, gates: padding included.
    """

    layers: int = 0
    heads: int = 0
    gates: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.layers + self.heads + self.gates

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.layers + other.layers, self.heads + other.heads, self.gates + other.gates)


def layer_flops(config: MultiExitBertConfig, tokens: int | torch.Tensor) -> int | torch.Tensor:
    """One BERT layer: four projections, attention, two feed-forward products; of one sample, or of each of [B]."""
    size, inner = config.hidden_size, config.intermediate_size
    return 2 * tokens * (4 * size**2 + 2 * size * inner) + 4 * tokens**2 * size


def head_flops(config: MultiExitBertConfig, layer: int, tokens: int) -> int:
    """The exit head at `layer`."""
    last = layer == config.num_hidden_layers
    kind, pooling = (config.last_head, config.last_pooling) if last else (config.head, config.pooling)
    hidden, size = config.hidden_size, config.head_size
    pooled = 2 * tokens if pooling == "mean" else 0  # for each feature
    if kind == "linear":
        return pooled * hidden + 2 * hidden * config.num_labels
    if kind == "pooler":
        return pooled * hidden + 2 * hidden * (hidden + config.num_labels)
    queries = tokens if pooling == "mean" else 1
    attention = _attention_flops(hidden, size, tokens, queries)
    return attention + pooled * size + 2 * size * (2 * size + config.num_labels)


def gate_flops(config: MultiExitBertConfig, tokens: int) -> int:
    """A skip gate."""
    if config.skip_gate == "mean":
        return 2 * tokens * config.hidden_size + 2 * config.hidden_size
    size = config.skip_gate_size
    return _attention_flops(config.hidden_size, size, tokens, 1) + 2 * size * (size + 1)


def _attention_flops(hidden: int, size: int, tokens: int, queries: int) -> int:
    """Reduced features, key and value of every token, and the attention of `queries` of them."""
    return 2 * tokens * (hidden * size + 2 * size**2) + 2 * queries * size**2 + 4 * queries * tokens * size
