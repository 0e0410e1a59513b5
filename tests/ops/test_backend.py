"""Which implementation runs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from geep_triton.ops import backend
from geep_triton.ops.backend import choose_backend

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_auto_is_triton_on_a_gpu_and_torch_elsewhere(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    assert choose_backend(GPU) == "triton"
    assert choose_backend(CPU) == "torch"
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    assert choose_backend(GPU) == "torch"


def test_argument_before_environment(monkeypatch):
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.setenv(backend.VARIABLE, "torch")
    assert choose_backend(GPU) == "torch"
    assert choose_backend(GPU, "triton") == "triton"
    monkeypatch.setenv(backend.VARIABLE, "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_backend(CPU) == "torch"  # the engine has work for the host too
    assert choose_backend(GPU) == "triton"


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: auto, torch, triton"):
        choose_backend(GPU, "cuda")
    monkeypatch.setenv(backend.VARIABLE, "fast")
    with pytest.raises(ValueError, match="unknown GEEP_TRITON_BACKEND 'fast'"):
        choose_backend(CPU)
    monkeypatch.setattr(backend, "has_triton", lambda: False)
    with pytest.raises(ValueError, match="triton is not installed"):
        choose_backend(GPU, "triton")
    monkeypatch.setattr(backend, "has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs tensors on a GPU, got cpu; set TRITON_INTERPRET=1"):
        choose_backend(CPU, "triton")


def test_ops_on_a_cpu_import_no_kernels():
    code = (
        "import sys, torch; from geep_triton.ops.exit_scores import score_exits; score_exits(torch.zeros(2, 2), .5); "
        "assert not [name for name in sys.modules if name.startswith('geep_triton.ops.kernels')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
