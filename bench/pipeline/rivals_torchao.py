"""torchao on a CPU: int8 weights, activations quantized to int8 token by token, compiled."""

from __future__ import annotations

import copy

from torch import nn

from bench.pipeline.rivals_dense import Call, frozen
from bench.pipeline.rivals_given import Given, Missing, need


def torchao_bert(given: Given) -> Call:
    """Every linear layer. Raises Missing without the package, and in other dtypes."""
    if given.dtype != "int8":
        raise Missing("it quantizes; in float32 and bfloat16 it is torch")
    need("torchao")
    if not given.compile:
        raise Missing("left out (--no-compile): uncompiled it is slower than float32")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    module: nn.Module = copy.deepcopy(given.module)
    quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return frozen(module)
