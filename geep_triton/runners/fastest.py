"""Which runner is the fastest on this CPU, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from geep_triton.compat import multiplies_bfloat16, multiplies_int8
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.linear import pad_row_counts
from geep_triton.runners.onednn.convert import lay_out
from geep_triton.runners.onednn.runner import OnednnRunner
from geep_triton.runners.padded import PaddedRunner
from geep_triton.runners.parts import Parts
from geep_triton.timing import in_turns
from geep_triton.tokens.ragged import Tokens

SAMPLES, LENGTH = 8, 32  # of the batch that is timed
ROUNDS = 5
CLEARLY_FASTER = 1.1  # times as fast as "onednn" must be what is taken instead, so that noise alone does not decide
MadeOf = Callable[[MultiExitBert, Parts, str], PaddedRunner]


def padded_on_cpu(model: MultiExitBert, parts: Parts, dtype: str) -> PaddedRunner:
    """Runner "torch" of these modules on a CPU. In half precision it changes them."""
    if dtype in ("bfloat16", "float16"):
        pad_row_counts(parts)
    return PaddedRunner(model, parts, dtype)


def laid_out(model: MultiExitBert, parts: Parts, dtype: str) -> OnednnRunner:
    """Runner "onednn" of these modules. It converts them."""
    lay_out(parts)
    return OnednnRunner(model, parts, dtype)


TIMED: Mapping[str, MadeOf] = {"onednn": laid_out, "torch": padded_on_cpu}


def layer_seconds(model: MultiExitBert, dtype: str) -> dict[str, float]:
    """Time a copy of the model's first layer by each runner that needs no compiler, on 8 texts of 32 tokens.

    Args:
        model: on a CPU, with layers that can be converted.
        dtype: "float32" or "bfloat16".

    Returns:
        Runner -> the least seconds of several rounds in turns. Whatever else runs on the machine can only add time.
    """
    length = min(LENGTH, model.config.max_position_embeddings)
    ids = torch.randint(model.config.vocab_size, (SAMPLES * length,), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(ids, torch.arange(0, len(ids) + 1, length))
    calls = {}
    with torch.inference_mode():
        for name, made_of in TIMED.items():
            runner = made_of(model, Parts.first_layer(model, getattr(torch, dtype)), dtype)
            calls[name] = partial(runner.layers, 1, 1, runner.embed(tokens, torch.arange(SAMPLES), tokens.lengths))
            calls[name]()
        return {name: min(seconds) for name, seconds in in_turns(calls, ROUNDS).items()}


def fastest(seconds: Mapping[str, float]) -> str:
    """The runner to take: "onednn", unless another one is clearly faster."""
    return min(seconds, key=lambda name: seconds[name] * (1.0 if name == "onednn" else CLEARLY_FASTER))


def multiplied_here() -> list[str]:
    """The dtypes below float32 in which this CPU has instructions for products. In others layers run, but no faster."""
    return [name for name, there in (("bfloat16", multiplies_bfloat16()), ("int8", multiplies_int8())) if there]
