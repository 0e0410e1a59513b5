"""Where an op runs: each test body runs in PyTorch and in Triton, on the CPU and, where there is one, on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings

from geep_triton.ops.backend import BACKENDS, has_triton

# A launch in the interpreter takes milliseconds.
settings.register_profile("ops", deadline=None, max_examples=25)

GUARD = 4096  # bytes on each side of a kernel's buffer
POISON = 0x5A


@dataclass(frozen=True)
class Target:
    """A backend on a device."""

    backend: str
    device: str

    def __call__(self, values, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of `values` on the device."""
        return torch.as_tensor(values, dtype=dtype).to(self.device)


def targets():
    """What this machine has. With a GPU Triton is not in its interpreter, which is fixed when it is imported."""
    found = [pytest.param(Target("torch", "cpu"), id="torch-cpu")]
    if torch.cuda.is_available():
        found += [
            pytest.param(Target(backend, "cuda"), id=f"{backend}-cuda", marks=pytest.mark.gpu) for backend in BACKENDS[1:]
        ]
    elif has_triton():
        found += [pytest.param(Target("triton", "cpu"), id="triton-interpreter")]
    return found


@pytest.fixture(scope="session", params=targets())
def target(request) -> Target:
    return request.param


@pytest.fixture(autouse=True, scope="module")
def _guard_zones():
    """Every buffer of every launch lies between guard zones, which no kernel may change; what it reads there is poison.

    Where rows lie apart so are the gaps between them.
    """
    if not has_triton():
        yield
        return
    from geep_triton.ops.kernels import launching

    launch = launching.launch

    def guarded(kernel, grid, *arguments, **options):
        zones = {}  # a buffer that is passed twice stays one buffer

        def fence(value):
            if not isinstance(value, torch.Tensor):
                return value
            key = value.data_ptr(), value.dtype, value.shape, value.stride()
            if key not in zones:
                zones[key] = (value, *_with_guards(value))
            return zones[key][2]

        launch(kernel, grid, *map(fence, arguments), **options)
        for value, memory, inside in zones.values():
            assert torch.equal(memory, _with_guards(inside)[0]), f"{kernel.__name__} wrote outside of a buffer"
            value.data.copy_(inside)  # unseen by autograd, as a kernel's writes are

    launching.launch = guarded
    yield
    launching.launch = launch


def _with_guards(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All the memory as bytes, and a copy of `value`, laid out as it is, in its midst: gaps between its rows are poison too."""
    reach = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True)) + 1
    size = reach * value.element_size() if value.numel() else 0
    memory = torch.full((2 * GUARD + size,), POISON, dtype=torch.uint8, device=value.device)
    inside = memory[GUARD : GUARD + size].view(value.dtype).as_strided(value.shape, value.stride())
    inside.copy_(value)
    return memory, inside


@pytest.fixture(autouse=True, scope="module")
def _poisoned_buffers():
    """torch.empty gives NaN and the largest integers, so that a place that no kernel wrote shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)
