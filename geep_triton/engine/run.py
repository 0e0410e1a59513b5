"""Running one batch: layer by layer, answers as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from geep_triton.modeling.model import MultiExitBert
from geep_triton.ops.exit_scores import score_exits
from geep_triton.ops.move_rows import gather_rows
from geep_triton.ops.partition import partition
from geep_triton.outputs import Tokens


@dataclass(frozen=True, eq=False)
class Answer:
    """Samples that left a batch together.

    Attributes:
        rows: [B] int64 on the host, which samples.
        logits: [B, C].
        exit_layer: after which layer.
        layers_run: how many layers they ran.
    """

    rows: torch.Tensor
    logits: torch.Tensor
    exit_layer: int
    layers_run: int


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
        Answers; every row is in one of them.
    """
    input_ids, attention_mask, type_ids = _batch(model, tokens, rows)
    hidden = model.embed(input_ids, type_ids)
    layer_mask = _layer_mask(model, tokens, rows, hidden, attention_mask)
    for layer in range(1, depth + 1):
        hidden = model.run_layer(layer, hidden, layer_mask)
        if layer == depth or layer not in thresholds:
            continue
        logits = model.exit_logits(layer, hidden, attention_mask)
        scores = score_exits(logits, thresholds[layer])
        # The one time that the host waits for the device: it must know who is left to go on with them alone.
        leaves = scores.leaves.cpu()
        num_leaving = int(leaves.sum())
        if num_leaving == 0:
            continue
        order, _ = partition(scores.leaves)
        leaving, staying = order[:num_leaving], order[num_leaving:]
        yield Answer(rows[leaves], gather_rows(logits, leaving), layer, layer)
        if num_leaving == len(rows):
            return
        rows = rows[~leaves]
        hidden, attention_mask = gather_rows(hidden, staying), gather_rows(attention_mask, staying)
        layer_mask = _layer_mask(model, tokens, rows, hidden, attention_mask)
    if answer_head == "teacher" and depth < model.config.num_hidden_layers:
        yield Answer(rows, model.shared_logits(hidden, attention_mask, layer_mask), depth, depth + 1)
    else:
        yield Answer(rows, model.exit_logits(depth, hidden, attention_mask), depth, depth)


def run_every_exit(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> torch.Tensor:
    """Logits of every exit for the samples `rows`: [B, E, C]."""
    input_ids, attention_mask, type_ids = _batch(model, tokens, rows)
    return torch.stack(model(input_ids, attention_mask, type_ids, output_exit_logits=True).exit_logits, dim=1)


def _batch(model: MultiExitBert, tokens: Tokens, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The padded samples on the model's device: input_ids, attention_mask, token_type_ids."""
    tensors = tokens.padded(rows, model.config.pad_token_id or 0)
    return tuple(None if tensor is None else tensor.to(model.device) for tensor in tensors)


def _layer_mask(
    model: MultiExitBert, tokens: Tokens, rows: torch.Tensor, hidden: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor | None:
    """None where no row is padded, which the host knows without asking the device."""
    if int(tokens.lengths[rows].min()) == hidden.shape[1]:
        return None
    return model.layer_mask(hidden, attention_mask)
