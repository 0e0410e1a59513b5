"""Floating-point operations (FLOPs) of a model's parts for one sample. A multiplication and an addition count as two.

Attention, matrix products and linear layers count. Biases, activations and normalisation are left out, as usual.
`tests/test_flops.py` compares the numbers with PyTorch's counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch

from geep_triton.config import MultiExitBertConfig

Count = TypeVar("Count", int, torch.Tensor)  # tokens or operations of one sample, or of each of [B]


@dataclass
class Flops:
    """FLOPs by part of the model, padding included.

    Attributes:
        layers: FLOPs of the layers.
        heads: FLOPs of the exit heads.
        gates: FLOPs of the skip gates.
    """

    layers: int = 0
    heads: int = 0
    gates: int = 0

    @property
    def total(self) -> int:
        """FLOPs of all parts."""
        return self.layers + self.heads + self.gates

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.layers + other.layers, self.heads + other.heads, self.gates + other.gates)


def layer_flops(config: MultiExitBertConfig, tokens: Count) -> Count:
    """FLOPs of one BERT layer: four projections, attention, two feed-forward products.

    Args:
        config: configuration of the model.
        tokens: length of one sample, or lengths [B].

    Returns:
        One number, or [B].
    """
    size, inner = config.hidden_size, config.intermediate_size
    return 2 * tokens * (4 * size**2 + 2 * size * inner) + 4 * tokens**2 * size


def head_flops(config: MultiExitBertConfig, layer: int, tokens: Count) -> Count:
    """FLOPs of the exit head at `layer` for one sample."""
    last = layer == config.num_hidden_layers
    kind, pooling = (config.last_head, config.last_pooling) if last else (config.head, config.pooling)
    hidden, size = config.hidden_size, config.head_size
    pooled = 2 * tokens if pooling == "mean" else 0 * tokens  # per feature
    if kind == "linear":
        return pooled * hidden + 2 * hidden * config.num_labels
    if kind == "pooler":
        return pooled * hidden + 2 * hidden * (hidden + config.num_labels)
    queries = tokens if pooling == "mean" else 1 + 0 * tokens
    attention = _attention_flops(hidden, size, tokens, queries)
    return attention + pooled * size + 2 * size * (2 * size + config.num_labels)


def gate_flops(config: MultiExitBertConfig, tokens: Count) -> Count:
    """FLOPs of a skip gate for one sample."""
    if config.skip_gate == "mean":
        return 2 * tokens * config.hidden_size + 2 * config.hidden_size
    size = config.skip_gate_size
    return _attention_flops(config.hidden_size, size, tokens, 1 + 0 * tokens) + 2 * size * (size + 1)


def _attention_flops(hidden: int, size: int, tokens: Count, queries: Count) -> Count:
    """FLOPs of the reduced features, key and value of every token, and of the attention of `queries` tokens."""
    return 2 * tokens * (hidden * size + 2 * size**2) + 2 * queries * size**2 + 4 * queries * tokens * size
