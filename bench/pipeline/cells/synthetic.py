"""Random token ids: a matrix of shapes, sizes that grow, layers that are skipped."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import Any

import torch

from bench.pipeline.cells.throughput import compared
from bench.pipeline.peak_memory import forget_peak, resident
from bench.pipeline.replay import DISTRIBUTIONS, drawn
from bench.pipeline.settings import Settings
from bench.pipeline.skips import CHECKED, skip_rates
from bench.pipeline.systems import WINDOW, System, Workbench
from bench.rows import Found, found, not_there
from bench.shapes import load_model, load_tokenizer
from geep_triton import Engine
from geep_triton.modeling.flops import layer_flops
from geep_triton.runners.graphed import MOST_TOKENS

BATCHES = 8  # of a window in the matrix
CUDA_CALLS = {
    "kernels": ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"),
    "graphs": ("cudaGraphLaunch",),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}
LEFT_OUT = ("deebert", "huggingface, random")  # of the matrix: too slow, and all samples are of one length
DISTINCT = 4_096  # samples; more are streamed by repeating them


def scaling(axis: str, settings: Settings) -> list[Found]:
    """Seconds, and peak memory over what was there before, as one size grows: of "samples" streamed, "length", "classes" or
    "window".
    """
    sizes = {
        "samples": (1_000, 10_000, 100_000, 1_000_000),
        "length": (16, 32, 64, 128, 256, 512),
        "classes": (2, 10, 100, 1_000),
        "window": (64, 256, 1_024, 4_096, 16_384),
    }[axis]
    if settings.dry:
        sizes = sizes[:2]
    return [found("ours", _scaled(axis, size, settings), axis=axis, size=size) for size in sizes]


def _scaled(axis: str, size: int, settings: Settings) -> dict[str, Any]:
    tokenizer, length, samples = load_tokenizer(), 16, 256 if axis != "window" else 16_384
    if axis == "length":
        length = size
    if axis == "samples":
        samples = size
    if settings.dry:
        samples = min(samples, 64)
    # What grows with the number of samples is the pipeline around the layers, so those are small there.
    shape = "tiny" if axis in ("samples", "window") or settings.dry else "minilm"
    model = load_model(shape, labels=size if axis == "classes" else 4).to(settings.place)
    window = size if axis == "window" else 4_096
    engine = Engine(model, tokenizer, "threshold:0.9", token_budget=settings.token_budget, window=window)
    rows = list(_synthetic(min(samples, DISTINCT), length))
    list(engine.predict_windows(rows[:16]))  # measures layers, too
    forget_peak()
    answered, before, start = 0, resident("VmRSS"), time.perf_counter()
    for part in engine.predict_windows(islice(cycle(rows), samples)):
        answered += len(part)
    seconds = time.perf_counter() - start
    return {"samples": answered, "seconds": seconds, "megabytes_grown": resident("VmHWM") - before}


def _synthetic(samples: int, length: int) -> Iterator[dict[str, Any]]:
    """Random token ids between [CLS] and [SEP], always the same."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(samples):
        middle = torch.randint(1_000, 30_000, (length - 2,), generator=generator)
        yield {"input_ids": [101, *middle.tolist(), 102]}


def matrix(shape: str, length: int, tokens: int, dtype: str, settings: Settings) -> list[Found]:
    """Full depth and replayed exits over windows of some batches of so many tokens, all samples of one length.

    Besides rivals, the ceilings of the machine in the same run: a matrix product's rate and a copy's.
    """
    device, samples = torch.device(settings.place), max(2, BATCHES * tokens // length)
    if settings.dry:
        samples = 4
    tokenizer, texts = load_tokenizer(), list(_synthetic(samples, length))
    model = load_model(settings.shape(shape)).to(device)
    depth = model.config.num_hidden_layers
    recorded = {name: drawn(shares, samples, depth) for name, shares in DISTRIBUTIONS.items() if name != "all-12"}
    bench = Workbench(model, tokenizer, texts, tokens, length, recorded)
    rivals, missing = bench.rivals(dtype, settings.compile, None, batch=max(1, tokens // length), one_shape=True)
    ways = ["plain"] + ["compiled"] * settings.compile
    if device.type == "cuda" and settings.compile and samples > WINDOW:
        ways.append("compiled, windows, prefetch")
    if device.type == "cuda" and dtype == "bfloat16":
        ways.append("packed")
    if device.type == "cuda" and tokens <= MOST_TOKENS:
        ways.append("graphs")
    ours = [system for way in ways for system in bench.ours(dtype, way)]
    systems = [system for system in rivals if not system.name.startswith(LEFT_OUT)] + ours
    rows = compared(bench, systems, dtype, settings)
    flops = samples * depth * layer_flops(model.config, length)
    fastest, copied = ceilings(device, getattr(torch, dtype), 512 if settings.dry or device.type == "cpu" else 8192)
    reached = {
        row.system: flops / statistics.median(row.metrics["seconds"]) / fastest
        for row in rows
        if row.metrics.get("mean_layers") == depth
    }
    return [
        found("", {"samples": samples, "ceilings": {"flops_per_second": fastest, "copied_bytes_per_second": copied}}),
        *rows,
        *not_there(missing),
        *(found(system.name, {"launches": launches(system, texts)}) for system in ours if device.type == "cuda"),
        *(found(name, {"share_of_gemm_rate": share}) for name, share in reached.items()),
    ]


def skips(shape: str, length: int, tokens: int, dtype: str, settings: Settings) -> list[Found]:
    """Layers that are known to be skipped, at several rates, over windows as in the matrix."""
    samples = CHECKED if settings.dry else max(CHECKED, BATCHES * tokens // length)
    rows = list(_synthetic(samples, length))
    return skip_rates(settings.shape(shape), rows, tokens, length, dtype, settings.place, settings.rounds)


def ceilings(device: torch.device, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """Operations a second of a square matrix product, and bytes read and written a second by a copy: the best of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    big = torch.empty(64 * size * size, dtype=torch.uint8, device=device)
    other = torch.empty_like(big)
    return 2 * size**3 / best(lambda: a @ b, device), 2 * big.numel() / best(lambda: other.copy_(big), device)


def best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls."""
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def launches(system: System, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Kernels and graphs that the host launches, and its waits for the GPU, in one call on all rows."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        system.predict(rows)
    names = Counter(event.name for event in profiled.events())
    return {kind: sum(names[name] for name in several) for kind, several in CUDA_CALLS.items()}
