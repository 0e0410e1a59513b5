"""SmartBERT as its authors released it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from geep_triton import MultiExitBert, Predictions


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
            answers=self.model.answers,
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
