"""Describes the machine and the packages that a result was measured with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers

import geep_triton

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
COMMIT = "GEEP_COMMIT"  # names the commit where there is no git, or no repository


def without_folders(value: Any) -> Any:
    """A result to be kept, its absolute paths cut to their last two names: where they lay tells of this machine only."""
    if isinstance(value, dict):
        return {key: without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[1:][-2:])
    return value


def environment() -> dict[str, Any]:
    """Machine, versions, date and commit."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **_gpu(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": transformers.__version__,
        "geep_triton": geep_triton.__version__,
    }


def _commit() -> str:
    """The commit of the code. New results beside it leave it as it is; any other change of a known file makes it dirty."""
    if named := os.environ.get(COMMIT):
        return named
    found = _said_by("git", "describe", "--always", "--abbrev=12")
    changed = _said_by("git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return f"{found}{'-dirty' if changed else ''}" if found else "unknown"


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"gpu": None}
    asked = _said_by("nvidia-smi", "--query-gpu=driver_version,clocks.sm", "--format=csv,noheader,nounits", "--id=0")
    driver, _, clock = asked.partition(",")
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver or "unknown",
        "sm_clock_mhz": clock.strip() or "unknown",
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
    }


def _said_by(*command: str) -> str:
    """What a command prints; nothing where it is not installed, fails or takes long."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    family = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("cpu family")]
    return f"{names[0]} (family {family[0]})" if names and family else platform.processor()
