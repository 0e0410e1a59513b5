"""Which implementation of an op runs, PyTorch's or Triton's: the one place that reads the environment for it."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from geep_triton.checks import check_choice

BACKENDS = ("auto", "torch", "triton")
VARIABLE = "GEEP_TRITON_BACKEND"


@functools.cache
def has_triton() -> bool:
    """Whether Triton can be imported; it is not imported for that."""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Whether Triton runs its kernels in its interpreter, which takes CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose_backend(device: torch.device, backend: str | None = None) -> str:
    """ "torch" or "triton" for tensors on `device`.

    Args:
        device: where the op's tensors are.
        backend: "torch", "triton" or "auto": Triton on a GPU where it is installed, else PyTorch. None: what the environment
            variable GEEP_TRITON_BACKEND says, else "auto".

    Raises:
        ValueError: unknown backend; or "triton" where it is not installed, or for CPU tensors outside its interpreter.
    """
    name = "backend"
    if backend is None:
        name, backend = VARIABLE, os.environ.get(VARIABLE, "auto")
    check_choice(name, backend, BACKENDS)
    if backend == "auto":
        return "triton" if device.type == "cuda" and has_triton() else "torch"
    if backend == "triton" and not has_triton():
        raise ValueError(f"{name} is 'triton', but the package triton is not installed")
    if backend == "triton" and device.type != "cuda" and not interprets():
        raise ValueError(
            f"{name} is 'triton', which needs tensors on a GPU, got {device.type}; "
            "set TRITON_INTERPRET=1 before the first import to try its kernels on a CPU"
        )
    return backend
