"""What a careful user runs without us."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

from geep_triton import MultiExitBert, Predictions
from geep_triton.outputs import Tokens


class HuggingFaceSorted:
    """transformers' BertForSequenceClassification (SDPA) on length-sorted batches within a token budget.

    Its backbone holds the weights of `model`; its classifier is untrained, so only its speed means anything.
    """

    def __init__(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, token_budget: int) -> None:
        config = BertConfig.from_dict(model.config.to_dict())
        config._attn_implementation = "sdpa"
        self.model = BertForSequenceClassification(config).eval().to(model.device)
        self.model.bert.load_state_dict(model.bert.state_dict(), strict=False)
        self.tokenizer = tokenizer
        self.token_budget = token_budget

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`, for rows that all have a text_pair or none."""
        start = time.perf_counter()
        pairs = [row["text_pair"] for row in rows] if "text_pair" in rows[0] else None
        encoded = self.tokenizer([row["text"] for row in rows], pairs, return_attention_mask=False)
        tokens = Tokens.from_lists(encoded["input_ids"], encoded["token_type_ids"])
        lengths = tokens.lengths
        tokenized = time.perf_counter()
        order = lengths.argsort(descending=True)
        logits = torch.empty(len(rows), self.model.config.num_labels)
        begin, padded = 0, 0
        with torch.inference_mode():
            while begin < len(order):
                longest = int(lengths[order[begin]])
                part = order[begin : begin + max(1, self.token_budget // longest)]
                inputs = (tensor.to(self.model.device) for tensor in tokens.padded(part, self.tokenizer.pad_token_id))
                logits[part] = self.model(*inputs).logits.cpu()
                begin += len(part)
                padded += longest * len(part)
        depth = self.model.config.num_hidden_layers
        return Predictions(
            logits=logits,
            exit_layers=torch.full((len(rows),), depth),
            layers_run=torch.full((len(rows),), depth),
            id2label=dict(self.model.config.id2label),
            num_layers=depth,
            timings={"tokenize": tokenized - start, "run": time.perf_counter() - tokenized},
            tokens=padded,
            padding=1 - int(lengths.sum()) / padded,
        )

    def check_same_backbone(self, model: MultiExitBert, text: str) -> float:
        """Largest difference of the last hidden states on one text; raises ValueError above 1e-5."""
        inputs = self.tokenizer(text, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            theirs = self.model.bert(**inputs).last_hidden_state
            ours = model(**inputs, output_hidden_states=True).hidden_states[-1]
        difference = float((theirs - ours).abs().max())
        if difference > 1e-5:
            raise ValueError(f"the rival's backbone differs by {difference}")
        return difference


class ReleasedSmartBert:
    """SmartBERT's released inference (HuBoren99/SmartBert): one sample at a time, a gate, a layer and a head after another.

    The host reads every gate and every entropy before it goes on. Same weights, same threshold on the normalized entropy.
    """

    def __init__(self, model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, threshold: float, max_length: int) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.threshold = threshold
        self.max_length = max_length

    @torch.inference_mode()
    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`."""
        start = time.perf_counter()
        depth = self.model.config.num_hidden_layers
        logits, exits = zip(*(self._answer(row) for row in rows), strict=True)
        exits = torch.tensor(exits)
        return Predictions(
            logits=torch.stack(logits),
            exit_layers=exits,
            layers_run=exits,
            id2label=dict(self.model.config.id2label),
            num_layers=depth,
            timings={"run": time.perf_counter() - start},
        )

    def _answer(self, row: dict[str, Any]) -> tuple[torch.Tensor, int]:
        model, depth = self.model, self.model.config.num_hidden_layers
        encoded = self.tokenizer(
            row["text"], row.get("text_pair"), truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(model.device)
        mask = encoded["attention_mask"]
        hidden = model.embed(encoded["input_ids"], encoded.get("token_type_ids"))
        for layer in range(1, depth + 1):
            gate = model.skip_gate(layer, hidden, mask)
            if gate is not None and gate.soft.item() >= model.config.skip_threshold:
                continue
            hidden = model.run_layer(layer, hidden, None)
            logits = model.exit_logits(layer, hidden, mask)[0]
            shares = logits.softmax(-1)
            entropy = -(shares * shares.log()).sum() / math.log(len(shares))
            if layer < depth and entropy.item() <= self.threshold:
                return logits, layer
        return model.exit_logits(depth, hidden, mask)[0], depth
