"""The runner of layers on rows."""

from __future__ import annotations

import torch

from geep_triton.compat import keep_large_blocks
from geep_triton.modeling.model import MultiExitBert, additive_mask
from geep_triton.runners.onednn.layer import RowsLayer
from geep_triton.runners.onednn.rows import Layout
from geep_triton.runners.padded import PaddedRunner, Padding
from geep_triton.runners.parts import Parts

DENSE = 0.97  # share of real tokens up to which leaving out the others pays for finding their places in each layer


class OnednnRunner(PaddedRunner):
    """Runs several layers on the same rows: products and norms are of real tokens alone, attention of the padded batch.

    Args:
        model: see `PaddedRunner`.
        parts: modules that `geep_triton.runners.onednn.convert` has converted.
        dtype: see `PaddedRunner`.
    """

    def __init__(self, model: MultiExitBert, parts: Parts, dtype: str) -> None:
        keep_large_blocks()
        layers = [layer for layer in parts.layers if isinstance(layer, RowsLayer)]
        self._layers = layers if len(layers) == len(parts.layers) else None  # None: with an attention of their own
        super().__init__(model, parts, dtype, "onednn", None if self._layers is None else additive_mask)

    def run_layers(self, first: int, last: int, hidden: torch.Tensor, padding: Padding) -> torch.Tensor:
        """Run layers first..last on [B, S, H]."""
        if self._layers is None:
            return super().run_layers(first, last, hidden, padding)
        layout = Layout(hidden.shape[0], hidden.shape[1], padding.mask(hidden, self._make_mask))
        if int(padding.lengths.sum()) < DENSE * layout.samples * layout.length:
            layout = layout.without_padding(padding.attention_mask)
        rows = layout.from_batch(hidden)
        for layer in self._layers[first - 1 : last]:
            rows = layer.run(rows, layout)
        return layout.to_batch(rows)
