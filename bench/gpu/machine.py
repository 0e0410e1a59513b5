"""The device that is measured: a GPU, or a CPU that stands in for one so that every line can be tried without a GPU."""

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
        device: where tensors go.
        compiler: the backend of `torch.compile`.
        rehearsal: whether this only stands in for a GPU.
    """

    device, compiler, rehearsal = torch.device("cuda"), "inductor", False

    @property
    def name(self) -> str | None:
        """The card; None for a CPU that stands in for one."""
        return torch.cuda.get_device_name()

    def synchronize(self) -> None:
        """Wait until the device is done."""
        torch.cuda.synchronize()

    def recorder(self) -> Record:
        """What records CUDA graphs."""
        return cuda_graphs(self.device)

    def device_seconds(self, call: Call, rounds: int) -> list[float]:
        """The seconds of each of so many calls by the device's clock."""
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
        """The median seconds of a call that is replayed as a CUDA graph, in which launches cost next to nothing."""
        import triton.testing

        return triton.testing.do_bench_cudagraph(call, rep=rounds, return_mode="median") / 1e3

    def peak_memory(self) -> int:
        """The most bytes that tensors took since the last call."""
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak


class StandIn:
    """A CPU that stands in for a GPU: it takes the same calls, and their times mean nothing."""

    device, compiler, rehearsal, name = torch.device("cpu"), "eager", True, None

    def synchronize(self) -> None:
        """Do nothing, since there is nothing to wait for."""

    def recorder(self) -> Record:
        """What keeps work and repeats it. It also runs the work at once, as the warm-up of a recording does."""

        def record(work: Work) -> Work:
            work()
            return work

        return record

    def device_seconds(self, call: Call, rounds: int) -> list[float]:
        """The seconds of each of so many calls on the wall clock."""
        found = []
        for _ in range(rounds):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
        return found

    def replayed_seconds(self, call: Call, rounds: int) -> float:
        """The median seconds of a few calls on the wall clock."""
        return statistics.median(self.device_seconds(call, 2))

    def peak_memory(self) -> int:
        """No bytes, since none are counted."""
        return 0


Machine = Gpu | StandIn
