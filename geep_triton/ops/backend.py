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
            variable GEEP_TRITON_BACKEND says, else "auto"; "triton" there means: wherever Triton can run, since the engine
            also has work for the host.

    Raises:
        ValueError: unknown backend; or "triton" where it is not installed, or, as the argument, for CPU tensors outside its
            interpreter.
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
