"""Part 0: what this machine can do at best, and whether cuDNN's attention pays where batches have many shapes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.nn import functional as F

from bench.gpu.setting import Cells, Setting
from geep_triton.runners.attention import attention_kernels

ROUNDS = 10
LAUNCHES = 2_000
HEAD_SIZE = 64


def cells(setting: Setting) -> Cells:
    yield "matrix", lambda: matrix(setting)
    yield "copy", lambda: copy(setting)
    yield "launch", lambda: launch(setting)
    for cudnn in (False, True):
        yield f"attention, {'as torch chooses' if cudnn else 'without cuDNN'}", lambda cudnn=cudnn: attention(setting, cudnn)


def matrix(setting: Setting) -> dict[str, Any]:
    """Operations a second of a large product in bfloat16, on random values."""
    size, device = setting.sizes.matrix, setting.machine.device
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    seconds = setting.machine.device_seconds(lambda: a @ b, ROUNDS + 2)[2:]
    return {"size": size, "flops_per_second": 2 * size**3 / statistics.median(seconds)}


def copy(setting: Setting) -> dict[str, Any]:
    """Bytes read and written a second by a large copy."""
    source = torch.randint(0, 127, (setting.sizes.copied,), dtype=torch.int8, device=setting.machine.device)
    target = torch.empty_like(source)
    seconds = setting.machine.device_seconds(lambda: target.copy_(source), ROUNDS + 2)[2:]
    return {"bytes": source.numel(), "bytes_per_second": 2 * source.numel() / statistics.median(seconds)}


def launch(setting: Setting) -> dict[str, Any]:
    """Seconds that the host takes to ask for a tiny kernel, and to wait for one."""
    values, machine = torch.zeros(1, device=setting.machine.device), setting.machine
    for _ in range(LAUNCHES // 10):
        values.add_(1)
    machine.synchronize()
    start = time.perf_counter()
    for _ in range(LAUNCHES):
        values.add_(1)
    asked = time.perf_counter() - start
    machine.synchronize()
    waits = []
    for _ in range(LAUNCHES // 10):
        values.add_(1)
        start = time.perf_counter()
        values.cpu()
        waits.append(time.perf_counter() - start)
    return {"launch_seconds": asked / LAUNCHES, "wait_seconds": statistics.median(waits)}


def attention(setting: Setting, cudnn: bool) -> dict[str, Any]:
    """Seconds of the first and the second call at each of many batch sizes, texts padded."""
    sizes, machine = setting.sizes, setting.machine
    length, first, second = sizes.attention_length, [], []
    # Two probes must not warm each other up: each has batch sizes of its own.
    batches = range(17, 17 + 2 * sizes.attention_batches, 2) if cudnn else range(18, 18 + 2 * sizes.attention_batches, 2)
    with torch.inference_mode(), attention_kernels(cudnn):
        for samples in batches:
            query = torch.randn(samples, sizes.attention_heads, length, HEAD_SIZE, device=machine.device).bfloat16()
            mask = torch.zeros(samples, 1, 1, length, device=machine.device).bfloat16()
            mask[..., length // 2 :] = -torch.inf
            for seconds in (first, second):
                machine.synchronize()
                start = time.perf_counter()
                F.scaled_dot_product_attention(query, query, query, attn_mask=mask)
                machine.synchronize()
                seconds.append(time.perf_counter() - start)
    return {
        "batches": len(batches),
        "first_seconds": statistics.median(first[1:]),
        "worst_first_seconds": max(first[1:]),
        "second_seconds": statistics.median(second[1:]),
    }
