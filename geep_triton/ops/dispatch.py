"""Finds an op's implementation by its name."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch

from geep_triton.ops.backend import choose_backend


def implementation(op: str, device: torch.device, backend: str | None) -> ModuleType:
    """The module of `op` in `reference` or `kernels`. Triton is imported only when it is used."""
    room = "kernels" if choose_backend(device, backend) == "triton" else "reference"
    return _load(room, op)


@functools.cache
def _load(room: str, op: str) -> ModuleType:
    return importlib.import_module(f"geep_triton.ops.{room}.{op}")
