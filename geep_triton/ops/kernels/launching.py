"""Every launch goes through here, so that one place sees them all."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from triton.runtime import KernelInterface


def launch(kernel: KernelInterface, grid: tuple[int, ...], *arguments: Any, num_warps: int = 4, **constants: Any) -> None:
    """Run `kernel` on the device of its first argument; an empty grid is no launch."""
    if math.prod(grid) == 0:
        return
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[grid](*arguments, num_warps=num_warps, **constants)
