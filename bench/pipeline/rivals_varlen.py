"""A BERT on packed tokens. Texts are concatenated without padding, and each attends only to itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedTokenizerBase

from bench.pipeline.rivals_dense import DenseBert, answers, encode
from geep_triton import MultiExitBert, Predictions
from geep_triton.tokens.ragged import Tokens

NAME = "varlen"


def attend_within(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    offsets: torch.Tensor,
    longest: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of packed texts: [1, heads, T, D] three times, offsets [N + 1] int32 -> [1, T, heads, D].

    On a GPU torch's variable-length attention, for half precision only; elsewhere text by text.
    """
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(query, key, value, offsets, offsets, longest, longest)[None], None
    parts = zip(*(states.split(offsets.diff().tolist()) for states in (query, key, value)), strict=True)
    attended = [F.scaled_dot_product_attention(*(part.transpose(0, 1) for part in text)).transpose(0, 1) for text in parts]
    return torch.cat(attended)[None], None


class VarlenBert(DenseBert):
    """As `DenseBert`, on packed tokens; `compile`: its layers by torch.compile, with this backend or, if True, torch's own."""

    def __init__(self, model: MultiExitBert, layers: int, compile: bool | str = False) -> None:
        super().__init__(model, layers)
        AttentionInterface.register(NAME, attend_within)
        self.bert.config._attn_implementation = NAME
        backend = compile if isinstance(compile, str) else "inductor"
        self.run = torch.compile(_run, dynamic=True, backend=backend) if compile else _run

    def forward(self, ids: torch.Tensor, type_ids: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
        """Tokens of N texts, ids and segments [T], offsets [N + 1] int64 -> logits [N, C]."""
        lengths = offsets.diff()
        text = torch.repeat_interleave(lengths, output_size=len(ids))
        position = torch.arange(len(ids), device=ids.device) - offsets[text]
        hidden = self.bert.embeddings(input_ids=ids[None], token_type_ids=type_ids[None], position_ids=position[None])
        for layer in self.bert.encoder.layer:
            hidden = self.run(layer, hidden, offsets.int(), longest)
        # The head reads padded texts; it runs once.
        padded = hidden.new_zeros(len(lengths), longest, hidden.shape[2])
        padded[text, position] = hidden[0]
        mask = torch.arange(longest, device=ids.device) < lengths[:, None]
        return self.head(padded, mask.long()) / self.temperature


def _run(layer: nn.Module, hidden: torch.Tensor, offsets: torch.Tensor, longest: int) -> torch.Tensor:
    return layer(hidden, None, offsets=offsets, longest=longest)


class VarlenRival:
    """Texts in the order of arrival, packed into batches of so many tokens, at full depth.

    Args:
        model: whose weights run.
        token_budget: of a batch.
        max_length: tokens at which texts are cut.
        compile: its layers.
    """

    def __init__(
        self,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        token_budget: int,
        max_length: int,
        compile: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.token_budget, self.max_length = token_budget, max_length
        self.bert = VarlenBert(model, model.config.num_hidden_layers, compile)

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`."""
        start = time.perf_counter()
        tokens = encode(self.tokenizer, rows, self.max_length)
        tokenized, logits = time.perf_counter(), []
        with torch.inference_mode():
            for part in self._batches(tokens):
                there, longest = part.to(self.model.device), int(part.lengths.max())
                type_ids = torch.zeros_like(there.ids) if there.type_ids is None else there.type_ids
                logits.append(self.bert(there.ids, type_ids, there.offsets, longest))
            logits = torch.cat(logits).float().cpu()
        depth = torch.full((len(rows),), self.model.config.num_hidden_layers)
        seconds = {"tokenize": tokenized - start, "run": time.perf_counter() - tokenized}
        return answers(self.model, logits, depth, seconds, int(tokens.lengths.sum()))

    def _batches(self, tokens: Tokens) -> Iterator[Tokens]:
        begin, ends = 0, tokens.offsets[1:]
        while begin < len(tokens):
            full = int(tokens.offsets[begin]) + self.token_budget
            end = max(begin + 1, int(torch.searchsorted(ends, full, right=True)))
            yield tokens.select(torch.arange(begin, end))
            begin = end
