"""Compiling one BERT layer, which all layers of a model then run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from geep_triton.checks import shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.precision import is_int8

SAMPLES, TOKENS = 2, 8  # of a warm-up batch; sizes stay symbols, but 1 is always a case of its own
# Under no_grad, or on other strides, a layer compiles again; beyond torch's own limit of 8 that would be an error.
RECOMPILE_LIMIT = 64


def compile_layers(model: MultiExitBert, backend: str | Callable = "inductor") -> tuple[MultiExitBert, float]:
    """A copy of `model` that shares all it holds, whose `run_layer` is compiled, and the seconds that it took.

    One graph serves every layer and batch shape: weights and sizes are its inputs. It is compiled once with a mask and once
    without, each for one sample and for many; within `torch.inference_mode` nothing else compiles later. Samples of one token,
    for which it would, run uncompiled. torch keeps what it compiled on disk (TORCHINDUCTOR_CACHE_DIR), so that the next process
    takes less time.

    Args:
        model: in evaluation mode.
        backend: of `torch.compile`.

    Raises:
        ValueError: a quantized or packed model, or where torch.compile cannot work, such as on a CPU without a C++ compiler.
    """
    if model.packed:
        raise ValueError("compile=True: the model was packed in place and cannot be compiled: load it again")
    if is_int8(model):
        raise ValueError("compile=True: torch's int8 layers cannot be compiled; choose dtype float32 or bfloat16")
    layers = model.bert.encoder.layer
    # torch counts recompilations by code object and stops compiling after some: models must not share one.
    own = FunctionType(_run.__code__.replace(), _run.__globals__)
    run = torch.compile(own, backend=backend, dynamic=True, fullgraph=True)
    from torch._dynamo import config  # only now: its import takes long

    limit = config.patch(recompile_limit=RECOMPILE_LIMIT)

    def run_layer(layer: int, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
        if hidden_states.shape[1] == 1:
            return model.run_layer(layer, hidden_states, layer_mask)
        with limit:
            return run(layers[layer - 1], hidden_states, layer_mask)

    other = copy.copy(model)
    other.run_layer = run_layer
    start = time.perf_counter()
    try:
        with torch.inference_mode():
            for samples in (SAMPLES, 1):
                _warm_up(other, samples)
    except Exception as error:  # torch.compile fails in as many ways as there are compilers
        reason = shorten(" ".join(str(error).split()), 300)
        raise ValueError(
            f"compile=True: torch.compile does not work here ({type(error).__name__}: {reason}); on a CPU it needs a C++ "
            "compiler (environment variable CXX)"
        ) from error
    return other, time.perf_counter() - start


def _run(layer: nn.Module, hidden_states: torch.Tensor, layer_mask: Any) -> torch.Tensor:
    return layer(hidden_states, layer_mask)


def _warm_up(model: MultiExitBert, samples: int) -> None:
    """Every layer with a mask and without."""
    hidden = torch.zeros(samples, TOKENS, model.config.hidden_size, device=model.device, dtype=model.dtype)
    mask = model.layer_mask(hidden, torch.ones(samples, TOKENS, dtype=torch.int64, device=model.device))
    for given in (mask, None):
        for number in range(1, model.config.num_hidden_layers + 1):
            model.run_layer(number, hidden, given)
