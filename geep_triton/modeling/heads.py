"""Exit heads: they map hidden states [B, S, H] and an attention mask [B, S] to logits [B, C].

Padding never affects the logits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from geep_triton.config import MultiExitBertConfig


def pool(hidden_states: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """The first token ("cls"), or the mean over the tokens whose mask is 1 ("mean").

    The mean is computed in float32 for every dtype. bfloat16 would round token counts above 256 and their inverses, which would
    scale all logits by up to .4 %.

    Args:
        hidden_states: [B, S, D].
        attention_mask: [B, S], 1 for real tokens.
        pooling: "cls" or "mean".

    Returns:
        [B, D] in the dtype of the states.
    """
    if pooling == "cls":
        return hidden_states[:, 0]
    weights = attention_mask.float()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(weights.unsqueeze(1), hidden_states.float()).squeeze(1).to(hidden_states.dtype)


class LinearHead(nn.Module):
    """Pooling, dropout, Linear(H -> C)."""

    def __init__(self, config: MultiExitBertConfig, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, S, H], [B, S] -> [B, C]."""
        return self.classifier(self.dropout(pool(hidden_states, attention_mask, self.pooling)))

    @property
    def first_token_only(self) -> bool:
        """Whether the head reads only the first token's states."""
        return self.pooling == "cls"


class PoolerHead(nn.Module):
    """BERT's own head, as in BertForSequenceClassification: pooling, Linear(H -> H), tanh, dropout, Linear(H -> C)."""

    def __init__(self, config: MultiExitBertConfig, pooling: str) -> None:
        super().__init__()
        self.pooling = pooling
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, S, H], [B, S] -> [B, C]."""
        pooled = torch.tanh(self.dense(pool(hidden_states, attention_mask, self.pooling)))
        return self.classifier(self.dropout(pooled))

    @property
    def first_token_only(self) -> bool:
        """Whether the head reads only the first token's states."""
        return self.pooling == "cls"


class XavierLinear(nn.Linear):
    """A linear layer with Xavier initialisation.

    With BERT's own initialisation (std .02) five small layers in a row would output almost nothing at first.
    """

    def init_weights(self) -> None:
        """Initialise. Like all of transformers' initialisers this skips weights that were loaded from a checkpoint."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    num_heads: int,
    dropout: float,
) -> torch.Tensor:
    """Multi-head attention that ignores padding.

    Args:
        query: [B, Q, D].
        key: [B, S, D].
        value: [B, S, D].
        attention_mask: [B, S], 1 for real tokens.
        num_heads: number of heads, which divides D.
        dropout: dropout probability of the attention weights.

    Returns:
        [B, Q, D].
    """
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = attention_mask.bool()[:, None, None, :]
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return attended.transpose(1, 2).flatten(2)


class AttentionHead(nn.Module):
    """FastBERT's student classifier, as GEEP uses it.

    Linear(H -> D), tanh, self-attention over D, pooling, Linear(D -> D), tanh, Linear(D -> C), where D is head_size. The
    attention ignores padding, unlike in the released code (alibaba/EasyNLP, geep_classification).

    Attributes:
        token_layers: names of the linear layers that run on every token, which make up nearly all of the head's cost.
        first_token_only: whether the head reads only the first token's states.
    """

    token_layers = ("reduce", "query", "key_value")
    first_token_only = False

    def __init__(self, config: MultiExitBertConfig, pooling: str) -> None:
        super().__init__()
        size = config.head_size
        self.pooling = pooling
        self.num_heads = config.head_attention_heads
        self.attention_dropout = config.head_dropout
        self.reduce = XavierLinear(config.hidden_size, size)
        self.activation: nn.Module = nn.Tanh()
        self.query = XavierLinear(size, size)
        self.key_value = XavierLinear(size, 2 * size)
        self.output = XavierLinear(size, size)
        self.dense = XavierLinear(size, size)
        self.classifier = XavierLinear(size, config.num_labels)

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[B, S, H], [B, S] -> [B, C]."""
        features = self.features(hidden_states)
        # "cls" uses only the first token's row of the attention.
        queries = features[:, :1] if self.pooling == "cls" else features
        key, value = self.key_value(features).chunk(2, dim=-1)
        dropout = self.attention_dropout if self.training else 0.0
        attended = attend(self.query(queries), key, value, attention_mask, self.num_heads, dropout)
        # The output projection is linear, so it can follow the pooling and run once per sample, not per token.
        pooled = self.output(pool(attended, attention_mask, self.pooling))
        return self.classifier(torch.tanh(self.dense(pooled)))

    def features(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, S, H] -> the head's token features [B, S, D]."""
        return self.activation(self.reduce(hidden_states))


HEAD_CLASSES: dict[str, type[nn.Module]] = {"attention": AttentionHead, "pooler": PoolerHead, "linear": LinearHead}


def build_heads(config: MultiExitBertConfig) -> nn.ModuleDict:
    """One head per exit, keyed by its layer number."""
    last = config.num_hidden_layers
    return nn.ModuleDict(
        {
            str(layer): HEAD_CLASSES[config.last_head if layer == last else config.head](
                config, config.last_pooling if layer == last else config.pooling
            )
            for layer in config.exit_layers
        }
    )
