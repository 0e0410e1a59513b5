"""Servers in processes of their own, each on one core."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.environment import ROOT
from bench.serving.wire import Address, Lost, fetch

PATIENCE = 120.0  # seconds that a server may take to start or to stop
ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
SAMPLE = re.compile(r"^(\w+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class System:
    """A way to answer.

    Attributes:
        name: shown in tables.
        truth: whose answers it must give, "full" or "exits".
        command: that starts it, without the interpreter.
    """

    name: str
    truth: str
    command: Sequence[str]

    def with_options(self, *options: object) -> System:
        """The same, started with further options."""
        return System(self.name, self.truth, [*self.command, *map(str, options)])


def ours(name: str, model: Path, *options: object) -> System:
    """`geep serve`."""
    truth = "full" if "full" in options else "exits"
    return System(name, truth, ["-m", "geep_triton", "serve", str(model), "--port", "0", *map(str, options)])


def rival(name: str, model: Path, *options: object) -> System:
    """Hugging Face's pipeline behind the same server."""
    return System(name, "full", ["-m", "bench.serving.rival", str(model), *map(str, options)])


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        process: its own.
        address: where it listens.
    """

    process: subprocess.Popen[bytes]
    address: Address

    @property
    def megabytes(self) -> float:
        """What it holds in memory now."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> int:
        """Ask it to stop, and wait for that. Returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def running(system: System, log: Path, core: int) -> Iterator[Running]:
    """A server that answers /health. It is killed in the end, if it has not been stopped.

    Args:
        system: to start.
        log: file of what it prints.
        core: that all of its threads share.

    Raises:
        RuntimeError: it did not start.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["TOKENIZERS_PARALLELISM"] = "false"
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *system.command], stdout=file, stderr=file, env=environment, cwd=ROOT)
        try:
            os.sched_setaffinity(process.pid, {core})
            yield Running(process, _address(process, log))
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> Address:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        if found := ADDRESS.search(log.read_text(encoding="utf-8", errors="replace")):
            address = ("127.0.0.1", int(found[1]))
            try:
                asyncio.run(fetch(address, "/health"))
            except Lost:
                pass
            else:
                return address
        time.sleep(0.05)
    raise RuntimeError(f"the server did not start: {log.read_text(encoding='utf-8', errors='replace')[-500:]}")


async def metrics(address: Address) -> dict[str, float]:
    """What /metrics tells: a value for each name with its labels."""
    text = (await fetch(address, "/metrics")).decode()
    return {name: float(value) for name, value in SAMPLE.findall(text)}
