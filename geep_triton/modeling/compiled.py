"""Compiling one BERT layer, which all layers of a model then run."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from geep_triton.checks import shorten
from geep_triton.modeling.model import MultiExitBert
from geep_triton.modeling.precision import twin

SAMPLES, TOKENS = 2, 8  # of a warm-up batch; sizes stay symbols, but 1 is always a case of its own


def compile_layers(model: MultiExitBert, backend: str | Callable = "inductor") -> tuple[MultiExitBert, float]:
    """A twin of `model` for inference whose layers are compiled, and the seconds that it took.

    One graph serves every layer and batch shape: weights and sizes are its inputs. It is compiled once with a mask and once
    without, each for one sample and for many; nothing else compiles later. torch keeps what it compiled on disk
    (TORCHINDUCTOR_CACHE_DIR), so that the next process takes less time.

    Raises:
        ValueError: a quantized model, or where torch.compile cannot work, such as on a CPU without a C++ compiler.
    """
    other = twin(model).eval()
    if type(other.bert.encoder.layer[0].output.dense) is not torch.nn.Linear:
        raise ValueError("compile=True: torch's int8 layers cannot be compiled; choose dtype float32 or bfloat16")
    for layer in other.bert.encoder.layer:
        layer.compile(backend=backend, dynamic=True, fullgraph=True)
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


def _warm_up(model: MultiExitBert, samples: int) -> None:
    """Every layer with a mask and without."""
    hidden = torch.zeros(samples, TOKENS, model.config.hidden_size, device=model.device, dtype=model.dtype)
    mask = model.layer_mask(hidden, torch.ones(samples, TOKENS, dtype=torch.int64, device=model.device))
    for given in (mask, None):
        for number in range(1, model.config.num_hidden_layers + 1):
            model.run_layer(number, hidden, given)
