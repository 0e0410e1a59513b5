"""Running one batch: layer by layer, answers as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import score_exits
from geep_triton.outputs import Tokens

Answer = tuple[torch.Tensor, torch.Tensor, int]


def run_batch(
    model: MultiExitBert,
    tokens: Tokens,
    rows: torch.Tensor,
    depth: int,
    thresholds: Mapping[int, float],
    answer_head: str,
) -> Iterator[Answer]:
    """Run the samples `rows` to `depth`, letting the sure ones leave on the way.

    Args:
        rows: [B] int64, samples of `tokens`.
        depth: layer at which the rest is answered.
        thresholds: exit layer -> uncertainty at or under which a sample leaves there.
        answer_head: which head answers at `depth`.

    Yields:
        (rows [B'], logits [B', C], exit layer), every row once.
    """
    hidden, attention_mask, layer_mask = _embed(model, tokens, rows)
    for layer in range(1, depth + 1):
        hidden = model.run_layer(layer, hidden, layer_mask)
        if layer == depth or layer not in thresholds:
            continue
        logits = model.exit_logits(layer, hidden, attention_mask)
        leaves = score_exits(logits, thresholds[layer])[2]
        leaves_on_host = leaves.cpu()
        if not leaves_on_host.any():
            continue
        yield rows[leaves_on_host], logits[leaves], layer
        if leaves_on_host.all():
            return
        rows, hidden, attention_mask = rows[~leaves_on_host], hidden[~leaves], attention_mask[~leaves]
        layer_mask = model.layer_mask(hidden, attention_mask)
    if answer_head == "teacher" and depth < model.config.num_hidden_layers:
        yield rows, model.shared_logits(hidden, attention_mask, layer_mask), depth
    else:
        yield rows, model.exit_logits(depth, hidden, attention_mask), depth


def run_every_exit(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> torch.Tensor:
    """Logits of every exit for the samples `rows`: [B, E, C]."""
    hidden, attention_mask, layer_mask = _embed(model, tokens, rows)
    answers = []
    for layer in range(1, model.config.num_hidden_layers + 1):
        hidden = model.run_layer(layer, hidden, layer_mask)
        if layer in model.config.exit_layers:
            answers.append(model.exit_logits(layer, hidden, attention_mask))
    return torch.stack(answers, dim=1)


def _embed(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    device = model.device
    input_ids, attention_mask, type_ids = tokens.padded(rows, model.config.pad_token_id or 0)
    attention_mask = attention_mask.to(device)
    hidden = model.embed(input_ids.to(device), None if type_ids is None else type_ids.to(device))
    return hidden, attention_mask, model.layer_mask(hidden, attention_mask)
