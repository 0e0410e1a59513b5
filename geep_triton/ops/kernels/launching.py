"""The one place through which every kernel is launched."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from triton.runtime import KernelInterface


def launch(kernel: KernelInterface, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run `kernel` on the device of its first argument. An empty grid launches nothing."""
    if math.prod(grid) == 0:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, **constants)
