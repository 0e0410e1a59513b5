"""BERT's layer on rows, in float32 or bfloat16."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.activation import ReLU
from transformers.activations import GELUActivation

from geep_triton.compat import BertLayer
from geep_triton.runners.onednn.attention import attend_rows
from geep_triton.runners.onednn.rows import Layout

INSIDE = {GELUActivation: "gelu", ReLU: "relu"}  # activations that oneDNN applies within a product


def activation_inside(layer: BertLayer) -> str | None:
    """Name of the layer's activation where oneDNN applies it within a product; else None."""
    return INSIDE.get(type(layer.intermediate.intermediate_act_fn))


class RowsLayer(nn.Module, ABC):
    """A layer of BERT that runs on rows, for inference on a CPU."""

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **__: Any) -> torch.Tensor:
        """[B, S, H] and a mask that SDPA takes (additive or bool, [B, 1, 1 or S, S]) or None -> [B, S, H].

        transformers' own encoder passes further arguments for decoders. This layer is never part of a decoder.
        """
        if mask is not None and mask.dtype == torch.bool:
            mask = hidden.new_zeros(mask.shape).masked_fill_(~mask, -torch.inf)
        layout = Layout(hidden.shape[0], hidden.shape[1], mask)
        return layout.to_batch(self.run(layout.from_batch(hidden), layout))

    @abstractmethod
    def run(self, rows: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Run the layer.

        Args:
            rows: [R, H]. What stands in rows beyond those of the layout changes no other row.
            layout: of the rows.

        Returns:
            [R, H].
        """


class FloatLayer(RowsLayer):
    """A `BertLayer` with SDPA attention whose linear layers are `OnednnLinear`, and no code for training.

    Args:
        layer: of transformers, its linear layers replaced.
    """

    # transformers' own modules, their linear layers replaced by what no type knows
    attention: Any
    intermediate: Any
    output: Any

    def __init__(self, layer: BertLayer) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output

    def run(self, rows: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `RowsLayer.run`."""
        attention, project, reduce = self.attention.self, self.attention.output, self.output
        query, key, value = (part.on_rows(rows) for part in (attention.query, attention.key, attention.value))
        attended = attend_rows(query, key, value, layout, attention.num_attention_heads, attention.scaling)
        rows = project.LayerNorm(project.dense.on_rows(attended).add_(rows))
        expanded = self.intermediate.intermediate_act_fn(self.intermediate.dense.on_rows(rows))
        return reduce.LayerNorm(reduce.dense.on_rows(expanded).add_(rows))
