"""What a rival of another package is given, and how it says that it cannot run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from bench.pipeline.rivals_dense import DenseBert, Inputs, encode, padded_inputs, sorted_batches


class Missing(Exception):
    """Why a rival does not take part."""


@dataclass(frozen=True)
class Given:
    """A model that a rival shall run.

    Attributes:
        module: in float32.
        dtype: "float32", "bfloat16" or "int8".
        threads: of the rival.
        folder: for files; rivals share what they export there.
        calibration: batches of texts that are not timed, for static quantization.
        tokenizer: the model's own.
        compile: whether compiled rivals take part.
    """

    module: DenseBert
    dtype: str
    threads: int
    folder: Path
    calibration: Sequence[Inputs]
    tokenizer: PreTrainedTokenizerBase
    compile: bool


def batches_of(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, token_budget: int, max_length: int
) -> list[Inputs]:
    """Texts as a dense rival runs them."""
    tokens = encode(tokenizer, rows, max_length)
    parts = sorted_batches(tokens.lengths, token_budget)
    return [padded_inputs(tokens, part, tokenizer.pad_token_id or 0) for part in parts]


def need(*packages: str) -> None:
    """Raises Missing where some are not installed."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        raise Missing(f"{' and '.join(absent)} not installed (pip install 'geep-triton[rivals]')")


def why(error: Exception) -> str:
    """What a page says of a rival that raised this."""
    return str(error) if isinstance(error, Missing) else f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
