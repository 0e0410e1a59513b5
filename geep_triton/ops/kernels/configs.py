"""Launch configurations: a table per op and architecture with a row per size. Nothing is searched at run time."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from geep_triton.ops.backend import interprets


@dataclass(frozen=True)
class Config:
    """The launch configuration of a kernel.

    Attributes:
        block: number of items per program.
        warps: number of warps (AMD: wavefronts) per program.
    """

    block: int
    warps: int


# op -> architecture -> (largest size, configuration), ascending. "default" is for every architecture without its own row.
# `python -m bench.gpu` measures the candidates in bench/ops/tune.py.
TABLE: dict[str, dict[str, tuple[tuple[float, Config], ...]]] = {
    "insert_add": {"default": ((math.inf, Config(256, 4)),), "interpreter": ((math.inf, Config(1024, 4)),)},
    "lookup": {"default": ((math.inf, Config(128, 2)),), "interpreter": ((math.inf, Config(1024, 4)),)},
    # The size is the mean number of tokens per sample. A program handles one sample.
    "predict_exits": {"default": ((math.inf, Config(32, 1)),), "interpreter": ((math.inf, Config(128, 1)),)},
    # The block is the number of elements in a tile of rows by classes. A tile has at least one row.
    "score_exits": {
        "default": ((256, Config(1024, 4)), (2048, Config(4096, 8)), (math.inf, Config(16384, 16))),
        "interpreter": ((math.inf, Config(4096, 4)),),
    },
    # The block is a number of rows.
    "gate_logits": {"default": ((math.inf, Config(8, 4)),)},
    "skip_gate": {"default": ((math.inf, Config(1024, 4)),)},
    "partition": {"default": ((math.inf, Config(1024, 4)),)},
    "forecast": {"default": ((math.inf, Config(4, 1)),), "interpreter": ((math.inf, Config(64, 1)),)},
    # The size is the mean number of candidates of a query. A program handles one query.
    "outranked": {
        "default": ((256, Config(128, 1)), (math.inf, Config(1024, 4))),
        "interpreter": ((math.inf, Config(1024, 4)),),
    },
}


def architecture(device: torch.device) -> str:
    """The architecture of a device, such as "sm_90" or "gfx942", or "interpreter"."""
    if interprets():
        return "interpreter"
    return _architecture(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _architecture(device: int) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def choose(op: str, size: int, device: torch.device) -> Config:
    """The configuration of `op` for a problem of `size`."""
    rows = TABLE[op].get(architecture(device), TABLE[op]["default"])
    return next(config for largest, config in rows if size <= largest)
