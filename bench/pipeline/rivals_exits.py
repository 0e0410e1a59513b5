"""Early exits as the code of their papers runs them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from bench.pipeline.rivals_dense import BATCH, answers, encode
from geep_triton import Predictions
from geep_triton.runners.base import Runner
from geep_triton.tokens.ragged import Tokens


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """[B, C] -> [B]."""
    logs = logits.float().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1) / math.log(logits.shape[-1])


class ShrinkingBatches:
    """A batch in the order of arrival runs layer by layer and loses at each exit the samples that are sure there.

    With batches of 32 this is FastBERT (autoliuweijie/FastBERT), with batches of one DeeBERT (castorini/DeeBERT), which
    answers one sample at a time. The host reads each exit's entropies before it goes on, as both do.

    Args:
        runner: of our model, in the precision to run; its layers, heads and weights are used.
        thresholds: layer of an early exit -> normalized entropy at or under which a sample leaves.
        max_length: tokens at which texts are cut.
        batch: samples.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase,
        thresholds: Mapping[int, float],
        max_length: int,
        batch: int = BATCH,
    ) -> None:
        self.runner, self.model, self.tokenizer = runner, runner.model, tokenizer
        self.thresholds, self.max_length, self.batch = thresholds, max_length, batch

    def predict(self, rows: Sequence[dict[str, Any]]) -> Predictions:
        """As `Engine.predict`."""
        start = time.perf_counter()
        parts = (rows[begin : begin + self.batch] for begin in range(0, len(rows), self.batch))
        logits, exits = self.answer_all(encode(self.tokenizer, part, self.max_length) for part in parts)
        return answers(self.model, logits, exits, {"run": time.perf_counter() - start})

    @torch.inference_mode()
    def answer_all(self, batches: Iterable[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, C] and exit layers [N] of all batches' texts."""
        logits, exits = [], []
        for tokens in batches:
            logits.append(torch.empty(len(tokens), self.model.config.num_labels))
            exits.append(torch.empty(len(tokens), dtype=torch.int64))
            for index, answer, layer in self._answers(tokens):
                logits[-1][index], exits[-1][index] = answer.float().cpu(), layer
        return torch.cat(logits), torch.cat(exits)

    def _answers(self, tokens: Tokens):
        """(which rows, logits, layer) as they leave."""
        runner, index = self.runner, torch.arange(len(tokens))
        device, last = self.model.device, self.model.config.num_hidden_layers
        states = runner.embed(tokens.to(device), index.to(device), tokens.lengths)
        for layer in range(1, last + 1):
            states = runner.layers(layer, layer, states)
            if layer not in self.thresholds and layer != last:
                continue
            logits = runner.logits(layer, states)
            leaves = torch.ones(len(index), dtype=torch.bool)
            if layer != last:
                leaves = (normalized_entropy(logits) <= self.thresholds[layer]).cpu()
            if leaves.any():
                yield index[leaves], logits[leaves], layer
            if leaves.all():
                return
            stays = (~leaves).nonzero()[:, 0]
            index, states = index[stays], runner.take(states, stays.to(device), states.lengths[stays])
