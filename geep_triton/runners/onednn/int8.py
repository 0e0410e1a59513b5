"""BERT's layer on rows in int8, with scales that never change: an answer does not depend on the texts beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from geep_triton.compat import BertLayer, onednn_int8_linear, rounded_to_uint8, unpacked_int8
from geep_triton.modeling.int8_layers import PRODUCTS, Int8Product
from geep_triton.runners.onednn.attention import attend_rows
from geep_triton.runners.onednn.layer import RowsLayer, activation_inside
from geep_triton.runners.onednn.rows import Layout

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"none": nn.Identity(), "gelu": F.gelu, "relu": F.relu}


class Int8Linear(nn.Module):
    """A linear layer [R, I] -> [R, O] in int8 for inference on a CPU.

    Args:
        product: its weights and scales.
        exact: whether this CPU multiplies int8 without overflow. If not, the same integers are multiplied in float32, which
            takes several times as long and gives the same answers.
    """

    def __init__(self, product: Int8Product, exact: bool) -> None:
        super().__init__()
        self.product = product
        self._float = None if exact else unpacked_int8(product.weight).float() * product.weight_scale[:, None]
        self._divisor = None if product.smoothing is None else 1 / product.smoothing
        self._zeros = torch.zeros(len(product.bias), dtype=torch.int32)

    def round(self, rows: torch.Tensor) -> torch.Tensor:
        """Inputs [R, I] of any floating point dtype, rounded: uint8."""
        rows = rows.float() if self._divisor is None else rows * self._divisor
        return rounded_to_uint8(rows, self.product.input_scale, self.product.input_zero)

    def forward(
        self, rows: torch.Tensor, activation: str = "none", output: tuple[float, int] | torch.dtype = torch.float32
    ) -> torch.Tensor:
        """[R, I] uint8 -> [R, O]; see `geep_triton.compat.onednn_int8_linear`."""
        if self._float is not None:
            return self._in_float32(rows, self._float, activation, output)
        product = self.product
        weight = (product.weight, product.weight_scale, self._zeros, product.bias)
        return onednn_int8_linear(rows, product.input_scale, product.input_zero, *weight, activation, output)

    def _in_float32(
        self, rows: torch.Tensor, weight: torch.Tensor, activation: str, output: tuple[float, int] | torch.dtype
    ) -> torch.Tensor:
        product = self.product
        values = F.linear((rows.float() - product.input_zero) * product.input_scale, weight, product.bias)
        values = ACTIVATIONS[activation](values)
        return values.to(output) if isinstance(output, torch.dtype) else rounded_to_uint8(values, *output)


class Int8Layer(RowsLayer):
    """A `BertLayer` with SDPA attention in int8. States, norms, sums and attention stay in float32.

    Args:
        layer: of transformers; its norms and its activation are shared.
        products: its linear layers in int8.
        exact: see `Int8Linear`.
    """

    attention: Any
    output: Any

    def __init__(self, layer: BertLayer, products: dict[str, Int8Product], exact: bool) -> None:
        super().__init__()
        self.attention, self.output = nn.Module(), nn.Module()  # named as in transformers, where others look for the norms
        self.attention.LayerNorm, self.output.LayerNorm = layer.attention.output.LayerNorm, layer.output.LayerNorm
        self.attend, self.project, self.expand, self.reduce = (Int8Linear(products[name], exact) for name in PRODUCTS)
        self._inside = activation_inside(layer)
        self._activation = layer.intermediate.intermediate_act_fn
        self._heads = layer.attention.self.num_attention_heads

    def run(self, rows: torch.Tensor, layout: Layout) -> torch.Tensor:
        """See `RowsLayer.run`."""
        query, key, value = self.attend(self.attend.round(rows)).chunk(3, dim=1)
        # In float32: rounded to bfloat16, an answer would depend on the kernel that its batch takes.
        attended = attend_rows(query, key, value, layout, self._heads, 1.0)  # the queries' weights have the scale
        rows = self.attention.LayerNorm(self.project(self.project.round(attended)).add_(rows))
        return self.output.LayerNorm(self.reduce(self._expanded(rows)).add_(rows))

    def _expanded(self, rows: torch.Tensor) -> torch.Tensor:
        """The hidden units of the feed-forward part, rounded: [R, I] uint8."""
        rounded, after = self.expand.round(rows), self.reduce
        if self._inside is None:
            return after.round(self._activation(self.expand(rounded)))
        return self.expand(rounded, self._inside, (after.product.input_scale, after.product.input_zero))
