"""Models with layers in int8, by texts that are not timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from geep_triton import Engine, MultiExitBert, quantize
from geep_triton.engine.quantize import FEWEST_TEXTS


def with_int8(
    model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], max_length: int
) -> MultiExitBert:
    """The model, with int8 layers by these rows if it has none. Few rows, as of a dry run, are repeated."""
    if model.int8_layers is None:
        enough = [*rows] * -(-FEWEST_TEXTS // len(rows))
        model.int8_layers = quantize(model, tokenizer, enough, progress=False, max_length=max_length, truncation=True)
    return model


def save_with_int8(
    folder: Path,
    model: MultiExitBert,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    max_length: int,
) -> str:
    """Write the model into a folder, for a process of its own. Returns the folder."""
    Engine(with_int8(model, tokenizer, rows, max_length), tokenizer, "full").save_pretrained(folder)
    return str(folder)
