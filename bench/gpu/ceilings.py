"""Part 0 measures what this machine can do at best, and whether cuDNN's attention pays for batches of many shapes."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn import functional as F

from bench.gpu.setting import Cells, Setting
from bench.rows import Found, found
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


def matrix(setting: Setting) -> list[Found]:
    """The operations a second of a large matrix product in bfloat16, on random values."""
    size, device = setting.sizes.matrix, setting.machine.device
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    seconds = setting.machine.device_seconds(lambda: a @ b, ROUNDS + 2)[2:]
    return [found("", {"size": size, "flops_per_second": 2 * size**3 / statistics.median(seconds)})]


def copy(setting: Setting) -> list[Found]:
    """The bytes that a large copy reads and writes in a second."""
    source = torch.randint(0, 127, (setting.sizes.copied,), dtype=torch.int8, device=setting.machine.device)
    target = torch.empty_like(source)
    seconds = setting.machine.device_seconds(lambda: target.copy_(source), ROUNDS + 2)[2:]
    rate = 2 * source.numel() / statistics.median(seconds)
    return [found("", {"bytes": source.numel(), "bytes_per_second": rate})]


def launch(setting: Setting) -> list[Found]:
    """The seconds that the host takes to ask for a tiny kernel, and to wait for one."""
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
    return [found("", {"launch_seconds": asked / LAUNCHES, "wait_seconds": statistics.median(waits)})]


def attention(setting: Setting, cudnn: bool) -> list[Found]:
    """The seconds of the first and of the second call at each of many batch sizes, on padded texts."""
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
    measured = {
        "batches": len(batches),
        "first_seconds": statistics.median(first[1:]),
        "worst_first_seconds": max(first[1:]),
        "second_seconds": statistics.median(second[1:]),
    }
    return [found("", measured)]
