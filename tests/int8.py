"""Models that are ready to run in int8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geep_triton import MultiExitBert, quantize


def quantized(model: MultiExitBert, tokenizer, texts: list[str]) -> MultiExitBert:
    """The model, with layers in int8 by these texts."""
    model.int8_layers = quantize(model, tokenizer, texts * -(-32 // len(texts)), progress=False)
    return model


def ready(model: MultiExitBert, tokenizer, texts: list[str], settings: Mapping[str, Any]) -> MultiExitBert:
    """The model, quantized if an engine of these settings is to run it in int8."""
    return quantized(model, tokenizer, texts) if settings.get("dtype") == "int8" else model
