"""The output of the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput


@dataclass
class MultiExitBertOutput(ModelOutput):
    """The output of `MultiExitBert.forward`. Fields that were not requested are None.

    Attributes:
        loss: scalar; see `MultiExitBert.forward`.
        logits: [B, C] of the exit that answers (the last one, or `exit_layer`).
        exit_logits: one [B, C] per exit, shallow to deep, including the last exit.
        shared_logits: one [B, C] per early exit k below layer L-1: the last layer and last head applied to h_k (GEEP's
            sub-networks; for k = L-1 this is `logits` itself).
        hidden_states: h_0 (embeddings) .. h_k, each [B, S, H].
        gates: one [B] float32 per gated layer up to the depth: the soft gate, the share of the layer that is skipped.
        skips: one [B] bool per gated layer up to the depth: whether the sample skips the layer.
        layer_outputs: T_1(h_0) .. T_k(h_{k-1}), each [B, S, H]: each layer's output before a gate mixes it with its input.
        auxiliary: in training, the results of the recipe's own modules by name.
        exit_layers: [B] int64, the layer after which each sample was answered, where a model answers by its own policy (see
            `geep_triton.engine.served_model`).
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_logits: tuple[torch.Tensor, ...] | None = None
    shared_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    gates: tuple[torch.Tensor, ...] | None = None
    skips: tuple[torch.Tensor, ...] | None = None
    layer_outputs: tuple[torch.Tensor, ...] | None = None
    auxiliary: dict[str, Any] | None = None
    exit_layers: torch.Tensor | None = None
