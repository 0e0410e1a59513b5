"""Skip gates: they map hidden states [B, S, H] and an attention mask [B, S] to the samples that skip a layer.

Padding never affects a gate.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from geep_triton.config import MultiExitBertConfig
from geep_triton.modeling.heads import XavierLinear, attend, pool
from geep_triton.ops.skip_gate import SkipGate, skip_gate


class GateLinear(nn.Linear):
    """Linear(features -> 1) whose initial bias is a setting. With a bias far below 0 nothing is skipped at first."""

    def __init__(self, features: int, start: float) -> None:
        super().__init__(features, 1)
        self.start = start

    def init_weights(self) -> None:
        """Initialise. Like all of transformers' initialisers this skips weights that were loaded from a checkpoint."""
        init.xavier_uniform_(self.weight)
        init.constant_(self.bias, self.start)


class MeanGate(nn.Module):
    """Mean over the real tokens, Linear(H -> 1), sigmoid."""

    def __init__(self, config: MultiExitBertConfig) -> None:
        super().__init__()
        self.output = GateLinear(config.hidden_size, config.skip_gate_bias)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, threshold: float) -> SkipGate:
        """Decide which samples skip the layer.

        Args:
            hidden_states: [B, S, H].
            attention_mask: [B, S], 1 for real tokens.
            threshold: a sample skips the layer if its soft gate is at least this.
        """
        return decide(pool(hidden_states, attention_mask, "mean"), self.output, threshold)


class AttentionGate(nn.Module):
    """SmartBERT's gate: Linear(H -> D), tanh, self-attention over D, first token, Linear(D -> 1), sigmoid.

    D is skip_gate_size. Source: Hu et al., IJCAI 2023, section 3.2; code HuBoren99/SmartBert.
    """

    def __init__(self, config: MultiExitBertConfig) -> None:
        super().__init__()
        size = config.skip_gate_size
        self.num_heads = config.skip_gate_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.reduce = XavierLinear(config.hidden_size, size)
        self.query = XavierLinear(size, size)
        self.key_value = XavierLinear(size, 2 * size)
        self.dense = XavierLinear(size, size)
        self.output = GateLinear(size, config.skip_gate_bias)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor, threshold: float) -> SkipGate:
        """Decide which samples skip the layer.

        Args:
            hidden_states: [B, S, H].
            attention_mask: [B, S], 1 for real tokens.
            threshold: a sample skips the layer if its soft gate is at least this.
        """
        features = torch.tanh(self.reduce(hidden_states))
        key, value = self.key_value(features).chunk(2, dim=-1)
        query = self.query(features[:, :1])  # only the first token's row is used
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(query, key, value, attention_mask, self.num_heads, dropout)
        return decide(self.dense(attended[:, 0]), self.output, threshold)


GATE_CLASSES: dict[str, type[nn.Module]] = {"attention": AttentionGate, "mean": MeanGate}


def decide(pooled: torch.Tensor, output: nn.Linear, threshold: float) -> SkipGate:
    """Run pooled states [B, D] through a gate's last layer. See `geep_triton.ops.skip_gate.skip_gate`."""
    return skip_gate(pooled, output.weight[0], output.bias, threshold)


def build_gates(config: MultiExitBertConfig) -> nn.ModuleDict:
    """One gate per layer that may be skipped, keyed by the layer's number. Empty for a model without gates."""
    if config.skip_gate is None or config.skip_layers is None:
        return nn.ModuleDict()
    gate = GATE_CLASSES[config.skip_gate]
    return nn.ModuleDict({str(layer): gate(config) for layer in config.skip_layers})
