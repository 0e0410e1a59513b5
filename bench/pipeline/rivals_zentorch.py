"""zentorch, AMD's plugin for torch: its compile backend, in float32 and bfloat16."""

from __future__ import annotations

import contextlib
import copy
import importlib
from typing import Any

import torch

from bench.pipeline.rivals_dense import Call
from bench.pipeline.rivals_given import Given, Missing, need


def zentorch_bert(given: Given) -> Call:
    """Compiled; frozen, it was a tenth slower. Raises Missing without the package."""
    if given.dtype == "int8":
        raise Missing("it takes int8 only from models that AMD Quark quantized")
    need("zentorch")
    if not given.compile:
        raise Missing("left out (--no-compile)")
    # It shows its oneDNN to all libraries that are loaded later: CTranslate2 would call it, and answer wrongly.
    with contextlib.suppress(ImportError):
        importlib.import_module("ctranslate2")
    module = copy.deepcopy(given.module).to(getattr(torch, given.dtype))
    return torch.compile(module, dynamic=True, backend=_compiled)


def _compiled(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
    """Its backend. It leaves a pass in inductor's settings, which would also change what others compile afterwards."""
    from torch._inductor import config
    from zentorch._compile_backend import zentorch_compile

    with config.patch(joint_custom_post_pass=None):
        return zentorch_compile(graph, inputs)
