"""The device that is measured: a GPU, or a CPU that stands in for one so that every line can be tried without."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from geep_triton.runners.graphed import Record, Work, cuda_graphs

Call = Callable[[], Any]


class Gpu:
    """A CUDA device.

    Attributes:
        device: where tensors go; compiler: backend of `torch.compile`; rehearsal: whether this is no GPU.
    """

    device, compiler, rehearsal = torch.device("cuda"), "inductor", False

    def synchronize(self) -> None:
        """Wait until the device is done."""
        torch.cuda.synchronize()

    def recorder(self) -> Record:
        """Records CUDA graphs."""
        return cuda_graphs(self.device)

    def device_seconds(self, call: Call, rounds: int) -> list[float]:
        """Seconds of each of so many calls by the device's clock."""
        found = []
        for _ in range(rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3)
        return found

    def replayed_seconds(self, call: Call, rounds: int) -> float:
        """Median seconds of a call's work replayed as a CUDA graph, in which its launches cost next to nothing."""
        import triton.testing

        return triton.testing.do_bench_cudagraph(call, rep=rounds, return_mode="median") / 1e3

    def peak_memory(self) -> int:
        """Most bytes that tensors took since this was asked last."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class StandIn:
    """A CPU on which the same calls are made: their times mean nothing."""

    device, compiler, rehearsal = torch.device("cpu"), "eager", True

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def recorder(self) -> Record:
        """Keeps work and repeats it; like a recording's warm-up it runs it at once."""

        def record(work: Work) -> Work:
            work()
            return work

        return record

    def device_seconds(self, call: Call, rounds: int) -> list[float]:
        """Wall clock."""
        found = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found

    def replayed_seconds(self, call: Call, rounds: int) -> float:
        """Wall clock of a few calls."""
        return statistics.median(self.device_seconds(call, 2))

    def peak_memory(self) -> int:
        """None is counted."""
        return 0


Machine = Gpu | StandIn
