"""`geep env`: what is installed and what works here, in one paste for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from geep_triton.cli.console import results_alone, say, show
from geep_triton.cli.options import AsJson, Quiet
from geep_triton.compat import has_onednn
from geep_triton.runners.trial import Trial, runners_here, try_runners
from geep_triton.version import __version__

PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "huggingface_hub", "safetensors", "accelerate", "numpy", "scipy"),
    *("pyarrow", "typer", "jinja2", "fastapi", "uvicorn", "datasets", "sentence-transformers"),
)
COMPILED = "compiled"  # the runner whose trial takes most of a minute


def env(
    compiled: Annotated[bool, typer.Option(help="Also try runner 'compiled', which compiles for up to some minutes.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Say what is installed, and which runners work here, in one paste for a bug report."""
    say("trying the runners ...", quiet)
    with results_alone(quiet):
        machine, trials = _machine(), _trials(compiled)
    found = {**machine, "runners": [vars(trial) for trial in trials]}
    lines = [f"{name:<14}{value}" for name, value in machine.items() if value is not None]
    show("\n".join([*lines, *map(_line, trials)]), found, as_json)


def _machine() -> dict[str, Any]:
    """Name -> what is so here."""
    return {
        "geep_triton": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads",
        "cpu features": torch.backends.cpu.get_cpu_capability() + (", oneDNN" if has_onednn() else ", no oneDNN"),
        "gpu": _gpu(),
    }


def _trials(compiled: bool) -> list[Trial]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    wanted = {device: [pair for pair in runners_here(device) if compiled or pair[0] != COMPILED] for device in devices}
    return [trial for device in devices for trial in try_runners(device, wanted[device])]


def _line(trial: Trial) -> str:
    told = f"works, within {trial.difference:.1e} of float32" if trial.error is None else trial.error
    return f"{'runner':<14}{trial.device} {trial.runner} {trial.dtype}: {told}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu() -> str:
    """The CPU's name, as Linux tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch sees"
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    built = torch.version.cuda or torch.version.hip
    return "; ".join(f"{of.name}, {of.total_memory / 2**30:.0f} GiB, capability {of.major}.{of.minor}, {built}" for of in found)
