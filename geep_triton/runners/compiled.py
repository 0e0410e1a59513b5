"""A runner that compiles one BERT layer and uses it for all layers."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from geep_triton.checks import shorten
from geep_triton.compat import recompile_limit
from geep_triton.modeling.model import MultiExitBert
from geep_triton.runners.attention import attention_kernels
from geep_triton.runners.padded import PaddedRunner
from geep_triton.runners.parts import Parts

SAMPLES, TOKENS = 2, 8  # of a warm-up batch; sizes stay symbols, but 1 is always a case of its own
# Under no_grad, or on other strides, a layer compiles again; beyond torch's own limit of 8 that would be an error.
RECOMPILE_LIMIT = 64


class CompiledRunner(PaddedRunner):
    """Runs layers with one graph, whose inputs are the weights and sizes.

    It is compiled with a mask and without one, each for one sample and for many. Within `torch.inference_mode` nothing else is
    compiled later. Samples of a single token would need another compilation, so they run uncompiled. torch caches compiled code
    on disk (TORCHINDUCTOR_CACHE_DIR), so that the next process starts faster.

    Args:
        model: see `PaddedRunner`.
        parts: see `PaddedRunner`.
        dtype: see `PaddedRunner`.
        cudnn_attention: see `PaddedRunner`.
        backend: backend of `torch.compile`.

    Attributes:
        compile_seconds: seconds that compiling took.

    Raises:
        ValueError: torch.compile does not work here, for example on a CPU without a C++ compiler.
    """

    def __init__(
        self,
        model: MultiExitBert,
        parts: Parts | None = None,
        dtype: str | None = None,
        backend: str | Callable = "inductor",
        cudnn_attention: bool = False,
    ) -> None:
        super().__init__(model, parts, dtype, "compiled", cudnn_attention=cudnn_attention)
        # torch counts recompilations by code object and stops compiling after some: runners must not share one.
        own = FunctionType(_run.__code__.replace(), _run.__globals__)
        self._run = torch.compile(own, backend=backend, dynamic=True, fullgraph=True)
        self._limit = recompile_limit(RECOMPILE_LIMIT)
        start = time.perf_counter()
        try:
            with torch.inference_mode(), attention_kernels(self.cudnn_attention):
                for samples in (SAMPLES, 1):
                    self._warm_up(samples)
        except Exception as error:  # torch.compile fails in as many ways as there are compilers
            reason = shorten(" ".join(str(error).split()), 300)
            raise ValueError(
                f"runner 'compiled': torch.compile does not work here ({type(error).__name__}: {reason}); on a CPU it needs a "
                "C++ compiler (environment variable CXX)"
            ) from error
        self.compile_seconds = time.perf_counter() - start

    def run_layer(self, number: int, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
        """Run one layer on [B, S, H], with the mask for its attention."""
        if hidden.shape[1] == 1:
            return super().run_layer(number, hidden, mask)
        with self._limit:
            return self._run(self.parts.layers[number - 1], hidden, mask)

    def _warm_up(self, samples: int) -> None:
        """Run every layer with and without a mask."""
        like = next(self.parts.embeddings.parameters())
        hidden = like.new_zeros(samples, TOKENS, self.model.config.hidden_size)
        mask = self._make_mask(hidden, torch.ones(samples, TOKENS, dtype=torch.int64, device=like.device))
        for given in (mask, None):
            for number in range(1, self.model.config.num_hidden_layers + 1):
                self.run_layer(number, hidden, given)


def _run(layer: nn.Module, hidden: torch.Tensor, mask: Any) -> torch.Tensor:
    return layer(hidden, mask)
