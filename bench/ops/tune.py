"""Measures the candidates for `geep_triton/ops/kernels/configs.py` on a GPU, in the last part of `python -m bench.gpu`.

Small kernels take less time than their launch, so their work is recorded once and replayed as a CUDA graph.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from bench.gpu.machine import Machine
from bench.ops.cases import OURS, Case
from bench.rows import Found, found

BLOCKS = {
    "insert_add": (128, 256, 512),
    "lookup": (128, 256, 512),
    "predict_exits": (32, 64, 128),
    "score_exits": (512, 1024, 4096),
    "skip_gate": (512, 1024),
    "partition": (512, 1024),
    "forecast": (2, 4, 8, 16),
    "outranked": (128, 256, 1024),
}
WARPS = (1, 2, 4, 8)
WAITS = ("insert_add",)  # for the device, so that they cannot be recorded
MOST_OF_A_THREAD = 32  # elements; with more, registers spill and compiling takes half a minute
THREADS = 32  # of a warp
REPLAYS = 20  # milliseconds
ROUNDS = 11


def candidates(op: str) -> Iterator[tuple[int, int]]:
    """The pairs (block, warps) that are worth a try."""
    for block, warps in itertools.product(BLOCKS[op], WARPS):
        if block <= MOST_OF_A_THREAD * THREADS * warps:
            yield block, warps


@torch.inference_mode()
def tuned(case: Case, machine: Machine) -> list[Found]:
    """The time of each configuration of one case, the fastest first. Of those that launch the same kernel only one is timed.

    Raises:
        ValueError: a configuration gives another result.
    """
    from geep_triton.ops.kernels import configs, launching

    call = case.providers[OURS]
    expected, rows, launched = call(), [], set()
    for block, warps in candidates(case.op):
        table = {**configs.TABLE, case.op: {"default": ((float("inf"), configs.Config(block, warps)),)}}
        kernels, launch = [], launching.launch

        def watched(kernel: Any, grid: tuple[int, ...], *given: Any, launch=launch, kernels=kernels, **options: Any) -> None:
            kernels.append((kernel.__name__, grid, tuple(sorted(options.items()))))
            launch(kernel, grid, *given, **options)

        with mock.patch.object(configs, "TABLE", table):
            with mock.patch.object(launching, "launch", watched):
                result = call()
            if kernels and tuple(kernels) in launched:
                continue
            launched.add(tuple(kernels))
            if not case.same_as_ours(result, expected):
                raise ValueError(f"{case.op} {case.config}: block {block}, {warps} warps give another result")
            seconds, replayed = _seconds(case.op, call, machine)
        rows.append(found("candidates", {"seconds": seconds, "replayed": replayed}, block=block, warps=warps))
    return sorted(rows, key=lambda row: row.metrics["seconds"])


def _seconds(op: str, call: Any, machine: Machine) -> tuple[float, bool]:
    """The seconds of a call, and whether its work was replayed."""
    if op in WAITS:
        return statistics.median(machine.device_seconds(call, ROUNDS)), False
    return machine.replayed_seconds(call, REPLAYS), True
