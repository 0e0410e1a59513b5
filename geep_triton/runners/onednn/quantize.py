"""Finds the int8 layers of a model from what flows through its layers on real texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from geep_triton.compat import BertLayer
from geep_triton.modeling.int8_layers import Int8Layers, Int8Product, layers_digest
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.onednn.layer import activation_inside
from geep_triton.runners.onednn.rounding import Shares, rounded, smoothing_of
from geep_triton.runners.padded import PaddedStates
from geep_triton.runners.parts import Parts


def quantize_layers(
    model: MultiExitBert,
    batches: Sequence[PaddedStates],
    text_hashes: torch.Tensor,
    each: Callable[[], object] | None = None,
) -> Int8Layers:
    """Round the layers one after another. The model's own modules stay as they are, whoever runs them meanwhile.

    Args:
        model: in float32 on a CPU, its layers those of transformers.
        batches: states before the first layer.
        text_hashes: [N] int64, of their texts, for the file.
        each: is called after each layer; None: nothing is.

    Raises:
        ValueError: what flows through a layer is NaN or infinite.
    """
    batches, products = list(batches), []
    stack: Any = Parts.copied(model).layers
    for number, layer in enumerate(stack, start=1):
        with _watched(layer) as seen:
            for at, states in enumerate(batches):
                seen.real = states.padding.attention_mask.bool()
                mask = states.padding.mask(states.hidden, model.layer_mask)
                batches[at] = PaddedStates(layer(states.hidden, mask), states.padding)
        inputs = seen.all()
        if not all(bool(values.isfinite().all()) for values in inputs):
            raise ValueError(f"layer {number}: what flows through it on these texts is NaN or infinite")
        products.append(_of_layer(layer, *inputs))
        if each is not None:
            each()
    return Int8Layers(products, layers_digest(model), text_hashes)


class _Seen:
    """Inputs of the four products of a layer, of real tokens.

    Attributes:
        real: [B, S] bool, the tokens of the batch that runs.
    """

    def __init__(self) -> None:
        self.real = torch.empty(0, 0, dtype=torch.bool)
        self._inputs: list[list[torch.Tensor]] = [[], [], [], []]

    def note(self, number: int, inputs: torch.Tensor) -> None:
        self._inputs[number].append(inputs[self.real])

    def all(self) -> list[torch.Tensor]:
        """[T, I] of each product."""
        return [torch.cat(several) for several in self._inputs]


@contextmanager
def _watched(layer: BertLayer) -> Iterator[_Seen]:
    """Note what the layer's products are multiplied by within the block."""
    seen = _Seen()
    products: Iterable[nn.Module] = (
        layer.attention.self.query, layer.attention.output.dense, layer.intermediate.dense, layer.output.dense,
    )  # fmt: skip
    hooks = [
        product.register_forward_pre_hook(lambda _, given, number=number: seen.note(number, given[0]))
        for number, product in enumerate(products)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _of_layer(
    layer: BertLayer, inputs: torch.Tensor, attended: torch.Tensor, between: torch.Tensor, hidden: torch.Tensor
) -> dict[str, Int8Product]:
    attention, project, expand, reduce = layer.attention.self, layer.attention.output.dense, layer.intermediate, layer.output
    # What the values are divided by, the product after attention is multiplied by: attention is linear in its values.
    even = smoothing_of(attended, project.weight)
    parts = (
        (attention.query.weight * attention.scaling, attention.query.bias * attention.scaling),
        (attention.key.weight, attention.key.bias),
        (attention.value.weight / even[:, None], attention.value.bias / even),
    )
    weight, bias = (torch.cat(several) for several in zip(*parts, strict=True))
    found = {
        "attend": rounded(weight, bias, inputs, smoothing_of(inputs, weight)),
        "project": rounded(project.weight * even, project.bias, attended / even),
    }
    weight, bias, reduced = expand.dense.weight, expand.dense.bias, reduce.dense.weight
    if activation_inside(layer) is not None:
        shares = Shares.of(hidden)
        (weight, bias), reduced, hidden = shares.expand(weight, bias), shares.reduce(reduced), shares.hidden(hidden)
    return found | {
        "expand": rounded(weight, bias, between, smoothing_of(between, weight)),
        "reduce": rounded(reduced, reduce.dense.bias, hidden),
    }
