"""Finding a model's layers in int8 on texts."""

from __future__ import annotations

import os
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from geep_triton.checks import check_bool, check_kind
from geep_triton.engine.batching import TOKEN_BUDGETS, schedule
from geep_triton.engine.engine import Engine
from geep_triton.engine.loading import load_both
from geep_triton.modeling.int8_layers import Int8Layers, layers_digest
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.make import check_goes_together, check_quantizable, make_runner
from geep_triton.runners.onednn.quantize import quantize_layers
from geep_triton.runners.padded import PaddedRunner
from geep_triton.tokens.ragged import Tokens
from geep_triton.tokens.samples import Inputs

FEWEST_TEXTS = 32
TOKENS = 8_192  # of the texts that are looked at, so that a few hundred are; more change little


def quantize(
    model: MultiExitBert, tokenizer: PreTrainedTokenizerBase, texts: Inputs, *, progress: bool = True, **engine: Any
) -> Int8Layers:
    """Round a model's layers to int8 by what flows through them on your texts (static post-training quantization).

    Weights get one scale for each output, and what they are multiplied by gets a scale that never changes: an answer does not
    depend on the texts beside it. Exits, embeddings, norms and sums stay as they are. See
    `geep_triton.runners.onednn.rounding` for the methods. Assign what this returns to `model.int8_layers` to run it
    (`Engine(model, tokenizer, dtype="int8")`) and to save it with the model. It holds for these weights alone: exits that are
    trained later change nothing, and layers that are trained later need it again.

    Args:
        model: in float32 on a CPU. It does not change.
        tokenizer: the model's own.
        texts: whatever `Engine.predict` takes, like the texts that will be served; no labels. Some hundred do. A part is taken
            at random, of about 8,192 tokens.
        progress: show a progress bar.
        **engine: further arguments of `Engine` (max_length, truncation, columns, ...).

    Raises:
        ValueError: there are fewer than 32 texts; the model is in another dtype or elsewhere, has other layers than BERT's with
            SDPA attention, adapters or hooks; what flows through a layer is NaN or infinite; and whatever `Engine.predict`
            raises.
        TypeError: an argument has another type.
    """
    check_kind("model", model, MultiExitBert)
    check_bool("progress", progress)
    check_goes_together(model, "onednn", "int8")
    check_quantizable(model, "quantize")
    made = Engine(model, tokenizer, "full", runner="torch", progress=progress, **engine)
    tokens = made.encode(texts)
    if len(tokens) < FEWEST_TEXTS:
        raise ValueError(f"texts: scales for int8 need at least {FEWEST_TEXTS}, got {len(tokens)}")
    with (
        torch.inference_mode(),
        tqdm(total=model.config.num_hidden_layers, desc="round layers", unit="layer", disable=not progress, leave=False) as bar,
    ):
        tokens, embedder = some_of(tokens), PaddedRunner(model)
        batches = schedule(torch.ones_like(tokens.lengths), tokens.lengths, TOKEN_BUDGETS["cpu"])
        states = [embedder.embed(tokens, rows, tokens.lengths[rows]) for rows, _ in batches]
        return quantize_layers(model, states, tokens.hashes(), bar.update)


def load_quantized(
    source: str | os.PathLike,
    texts: Inputs,
    policy: str,
    *,
    device: str | torch.device | None,
    runner: str,
    dtype: str | torch.dtype | None,
    **engine: Any,
) -> Engine:
    """As `Engine.from_pretrained`. A model that shall run in int8 and has no such layers of its own gets them by the texts."""
    model, tokenizer = load_both(source, device)
    if dtype == "int8" and (model.int8_layers is None or model.int8_layers.source != layers_digest(model)):
        names = ("max_length", "truncation", "columns", "progress")
        model.int8_layers = quantize(model, tokenizer, texts, **{name: engine[name] for name in names if name in engine})
    made = make_runner(model, runner, dtype, in_place=True)
    return Engine(model, tokenizer, policy, runner=made, **engine)


def some_of(tokens: Tokens) -> Tokens:
    """A random part of the texts, of about `TOKENS` tokens: always the same."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    enough = int((tokens.lengths[order].cumsum(0) < TOKENS).sum()) + 1
    return tokens.select(order[:enough])
