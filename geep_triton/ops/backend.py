"""Chooses the implementation of an op, PyTorch or Triton. Only this module reads the environment for it."""

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
    """Whether Triton is installed. This does not import it."""
    return importlib.util.find_spec("triton") is not None


def interprets() -> bool:
    """Whether Triton runs its kernels in its interpreter, which accepts CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def choose_backend(device: torch.device, backend: str | None = None) -> str:
    """The backend "torch" or "triton" for tensors on `device`.

    Args:
        device: device of the op's tensors.
        backend: "torch", "triton" or "auto" (Triton on a GPU if it is installed, else PyTorch). None: the environment variable
            GEEP_TRITON_BACKEND, or "auto" if it is not set. "triton" in the variable means: wherever Triton can run, because
            the engine also has work for the host.

    Raises:
        ValueError: the backend is unknown, or it is "triton" and Triton is not installed. If "triton" is the argument: the
            tensors are on a CPU outside Triton's interpreter.
    """
    name = "backend" if backend is not None else VARIABLE
    chosen = backend if backend is not None else os.environ.get(VARIABLE, "auto")
    check_choice(name, chosen, BACKENDS)
    if chosen == "auto":
        return "triton" if device.type == "cuda" and has_triton() else "torch"
    if chosen == "torch":
        return chosen
    if not has_triton():
        raise ValueError(f"{name} is 'triton', but the package triton is not installed")
    if device.type != "cuda" and not interprets():
        if backend is None:
            return "torch"
        raise ValueError(
            f"{name} is 'triton', which needs tensors on a GPU, got {device.type}; "
            "set TRITON_INTERPRET=1 before the first import to try its kernels on a CPU"
        )
    return chosen
