"""Full-depth and truncated BERTs in torch - Hugging Face eager, compiled and int8 - and how dense rivals batch texts."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase

from geep_triton import MultiExitBert, Predictions
from geep_triton.tokens.ragged import Tokens, to_device

BATCH = 32  # samples of a batch in the order of arrival
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids, mask, segments, each [B, S]
Call = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # ids, mask, segments, each [B, S] -> logits [B, C]


class DenseBert(nn.Module):
    """transformers' BertModel (SDPA) of so many layers with the weights of `model`, and the head of the exit there.

    Args:
        model: whose weights these are; they are shared.
        layers: an exit; the last one is full depth, others a truncated BERT.
    """

    def __init__(self, model: MultiExitBert, layers: int) -> None:
        super().__init__()
        values = model.config.to_dict() | {"num_hidden_layers": layers, "dtype": None}
        config = BertConfig.from_dict(values)
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            bert = BertModel(config, add_pooling_layer=False)
        wanted = set(bert.state_dict())
        bert.load_state_dict({k: v for k, v in model.bert.state_dict().items() if k in wanted}, assign=True)
        for name, buffer in bert.embeddings.named_buffers():  # those that no checkpoint holds
            setattr(bert.embeddings, name, getattr(model.bert.embeddings, name).to(device=model.device, dtype=buffer.dtype))
        self.bert = bert
        self.head = model.heads[str(layers)]
        at = model.config.exit_layers.index(layers)
        self.temperature = 1.0 if model.exit_config.temperatures is None else model.exit_config.temperatures[at]
        self.eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        """Each [B, S] -> logits [B, C]."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return self.head(hidden, attention_mask) / self.temperature


def compiled(module: nn.Module) -> Call:
    return torch.compile(module, dynamic=True)


def frozen(module: nn.Module) -> Call:
    """Compiled, its weights laid out for oneDNN at that (inductor's freezing, for a CPU)."""
    return torch.compile(module, dynamic=True, options={"freezing": True})


def torch_int8(module: nn.Module, inplace: bool = False) -> nn.Module:
    """As torch's documentation shows it: every linear layer."""
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8, inplace=inplace)


class DenseRival:
    """Batches of tokenized texts through one call that runs all its layers.

    Args:
        call: runs a batch.
        model: that ours runs: its names of classes, and where it is.
        layers: that the call runs.
        token_budget: of length-sorted batches, padding included; None: batches of 32 in the order of arrival.
        max_length: tokens at which texts are cut.
    """

    def __init__(
        self,
        call: Call,
        model: MultiExitBert,
        tokenizer: PreTrainedTokenizerBase,
        layers: int,
        token_budget: int | None,
        max_length: int,
    ) -> None:
        self.call, self.model, self.tokenizer = call, model, tokenizer
        self.layers, self.token_budget, self.max_length = layers, token_budget, max_length

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`."""
        start = time.perf_counter()
        tokens = encode(self.tokenizer, rows, self.max_length)
        tokenized = time.perf_counter()
        budget = self.token_budget
        parts = list(torch.arange(len(rows)).split(BATCH) if budget is None else sorted_batches(tokens.lengths, budget))
        logits, padded = run_batches(self.call, tokens, parts, self.tokenizer.pad_token_id or 0, self.model.device)
        depth = torch.full((len(rows),), self.layers)
        seconds = {"tokenize": tokenized - start, "run": time.perf_counter() - tokenized}
        return answers(self.model, logits, depth, seconds, padded, 1 - int(tokens.lengths.sum()) / padded)


def sorted_batches(lengths: torch.Tensor, token_budget: int) -> Iterator[torch.Tensor]:
    """Which texts of these lengths run together: the longest first, as many as the budget takes, padding included."""
    order, begin = lengths.argsort(descending=True), 0
    while begin < len(order):
        part = order[begin : begin + max(1, token_budget // int(lengths[order[begin]]))]
        yield part
        begin += len(part)


@torch.inference_mode()
def run_batches(
    call: Call, tokens: Tokens, parts: Sequence[torch.Tensor], padding: int, device: torch.device
) -> tuple[torch.Tensor, int]:
    """Logits [N, C] of all texts, in their order, and how many tokens ran, padding included.

    Args:
        call: runs a batch.
        tokens: of the N texts.
        parts: which of them run together.
        padding: its token id.
        device: where the call runs.
    """
    answered, padded = [], 0
    for part in parts:
        inputs = padded_inputs(tokens, part, padding)
        # A graph's answer is overwritten by the next.
        answered.append(call(*(to_device(tensor, device) for tensor in inputs)).clone())
        padded += inputs[0].numel()
    return torch.cat(answered).float().cpu()[torch.cat(list(parts)).argsort()], padded


def padded_inputs(tokens: Tokens, part: torch.Tensor, padding: int) -> Inputs:
    """Ids, mask and segments of some texts, each [B, S]."""
    input_ids, mask, type_ids = tokens.padded(part, padding)
    return input_ids, mask, torch.zeros_like(input_ids) if type_ids is None else type_ids


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int) -> Tokens:
    """Token ids of texts or pairs, or those that the rows hold already."""
    if "input_ids" in rows[0]:
        return Tokens.from_lists([row["input_ids"] for row in rows])
    pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
    texts = [row["text"] for row in rows]
    encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
    return Tokens.from_lists(encoded["input_ids"], encoded["token_type_ids"] if pairs else None)


def answers(
    model: MultiExitBert,
    logits: torch.Tensor,
    exits: torch.Tensor,
    seconds: dict[str, float],
    tokens: int = 0,
    padding: float = 0.0,
) -> Predictions:
    return Predictions(
        logits=logits,
        exit_layers=exits,
        layers_run=exits,
        answers=model.answers,
        num_layers=model.config.num_hidden_layers,
        timings=seconds,
        tokens=tokens,
        padding=padding,
    )
